// Text too faint on its ground, and how light the page is: contrast and luminance as WCAG 2.2 defines them, of colours
// as they are seen, through the transparent and the filters around them.
() => {
  const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), known = new Map();
  const seen = (colour, filter = 'none') => {
    const key = `${colour} ${filter}`;
    if (!known.has(key)) {
      context.clearRect(0, 0, 1, 1);
      context.filter = filter;
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
      known.set(key, [r, g, b, a / 255]);
    }
    return known.get(key);
  };
  const over = (above, below) => {
    const a = above[3] + below[3] * (1 - above[3]);
    const mix = i => a && (above[i] * above[3] + below[i] * below[3] * (1 - above[3])) / a;
    return [mix(0), mix(1), mix(2), a];
  };
  const through = (element, above) => {
    if (!element) return over(above, [255, 255, 255, 1]);
    const {backgroundColor, filter, opacity} = getComputedStyle(element);
    let [r, g, b, a] = over(above, seen(backgroundColor));
    if (filter !== 'none') [r, g, b, a] = seen(`rgb(${r} ${g} ${b} / ${a})`, filter);
    return through(element.parentElement, [r, g, b, a * opacity]);
  };
  const light = colour => colour.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, look = getComputedStyle(element);
    if (!node.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest('script, style, .bartext, .modebar')) continue;  // plotly's: text on bars, and pictograms
    const ink = seen(element.closest('svg') ? look.fill : look.color), size = parseFloat(look.fontSize);
    const shades = [through(element, ink), through(element, [0, 0, 0, 0])].map(light);
    const contrast = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
    const enough = size >= 24 || (size >= 18.66 && look.fontWeight >= 700) ? 3 : 4.5;
    if (contrast < enough) faint.push(`${node.data.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return {faint, page: light(through(document.body, [0, 0, 0, 0]))};
}
