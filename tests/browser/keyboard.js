// Notes what takes the focus from now on, and what should: whatever acts, and whatever scrolls sideways.
() => {
  window.reached = new Set();
  window.unmarked = [];
  document.addEventListener('focusin', ({target}) => {
    const look = getComputedStyle(target);
    reached.add(target);
    if (look.outlineStyle === 'none' && look.boxShadow === 'none') unmarked.push(target.outerHTML.slice(0, 80));
  });
  const scrolls = box => /auto|scroll/.test(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth;
  const acting = [...document.querySelectorAll('a[href], button, summary, input, select, textarea')];
  const boxes = [...document.querySelectorAll('main *')].filter(scrolls);
  const wanted = [...acting, ...boxes].filter(one => one.checkVisibility({visibilityProperty: true}));
  window.missed = () => wanted.filter(one => !reached.has(one)).map(one => one.outerHTML.slice(0, 80));
  return wanted.length;
}
