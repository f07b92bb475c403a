// Text too faint on its ground, and how light the page is: contrast and luminance as WCAG 2.2 defines them.
() => {
  const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), read = new Map();
  const rgba = colour => {
    if (!read.has(colour)) {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
      read.set(colour, [r, g, b, a / 255]);
    }
    return read.get(colour);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  const ground = element => {
    const below = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
    return over(rgba(getComputedStyle(element).backgroundColor), below);
  };
  const light = colour => colour.map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, look = getComputedStyle(element);
    if (!node.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest('script, style, .bartext, .modebar')) continue;
    const ink = rgba(element.closest('svg') ? look.fill : look.color);
    const below = ground(element), size = parseFloat(look.fontSize);
    const [high, low] = [light(over(ink, below)), light(below)].sort((a, b) => b - a);
    const enough = size >= 24 || (size >= 18.66 && look.fontWeight >= 700) ? 3 : 4.5;
    if ((high + 0.05) / (low + 0.05) < enough) faint.push([node.data.trim().slice(0, 40), look.color, look.fill]);
  }
  return {faint, page: light(ground(document.body))};
}
