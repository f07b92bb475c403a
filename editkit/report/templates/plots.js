// Draws a figure when it comes near to view, in place of its still picture, as wide as there is room.
const config = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']};
const coarse = matchMedia('(pointer: coarse)').matches;  // a finger that moves over a figure scrolls the page
const narrow = 560;  // pixels below which panels stand one under another

// The panels of a figure, by rows and columns, or null where they cannot be moved apart.
function panels({data, layout}) {
  const names = Object.keys(layout).filter(name => /^xaxis\d*$/.test(name));
  const found = names.map(name => ({x: layout[name], y: layout[name.replace('x', 'y')], name}));
  const fixed = found.some(({x, y}) => !y || x.overlaying || y.overlaying || !x.domain || !y.domain);
  const scaled = data.some(trace => trace.type === 'image') || layout.images?.length || layout.coloraxis;
  return fixed || scaled || found.length < 2 ? null : found;
}

function stacked(figure, height) {
  const {layout} = figure, found = panels(figure);
  if (!found) return layout;
  const {t = 100, b = 80} = layout.margin ?? {}, room = height - t - b, gap = 85;
  const at = found.map(({x, y}) => ({x: x.domain, y: y.domain, high: (y.domain[1] - y.domain[0]) * room}));
  const shared = found.some(({x}) => x.showticklabels === false);  // the lowest panel of a column has the labels
  const down = (a, b) => at[b].y[1] - at[a].y[1], along = (a, b) => at[a].x[0] - at[b].x[0];
  const order = found.map((_, n) => n).sort((a, b) => shared ? along(a, b) || down(a, b) : down(a, b) || along(a, b));
  const whole = at.reduce((sum, {high}) => sum + high, 0) + gap * (found.length - 1);
  const said = (side, n) => found[order.find(m => found[m][side].title?.text
    && (side === 'y' ? at[m].y[1] === at[n].y[1] : at[m].x[0] === at[n].x[0])) ?? n][side].title;
  const result = {...layout, annotations: (layout.annotations ?? []).map(note => ({...note}))};
  let top = whole;
  for (const n of order) {
    const {name, x, y} = found[n], domain = [Math.max(0, top - at[n].high) / whole, top / whole];
    result[name] = {...x, domain: [0, 1], ...(!shared && {showticklabels: true, title: said('x', n)})};
    result[name.replace('x', 'y')] = {...y, domain, showticklabels: true, title: said('y', n)};
    for (const note of result.annotations.filter(note => !note.moved && note.xref === 'paper' && note.yref === 'paper')) {
      const middle = (at[n].x[0] + at[n].x[1]) / 2;
      if (Math.abs(note.x - middle) < 0.02 && Math.abs(note.y - at[n].y[1]) < 0.02) {
        Object.assign(note, {x: 0.5, y: domain[1], moved: true});
      }
    }
    top -= at[n].high + gap;
  }
  return {...result, height: whole + t + b};
}

const scale = trace => trace.colorbar && trace.showscale !== false;

// Where panels stand one under another, each colour bar stands beside its own.
function barred(data, layout) {
  return data.map(trace => {
    if (!scale(trace)) return trace;
    const [low, high] = layout[(trace.yaxis ?? 'y').replace('y', 'yaxis')].domain;
    const at = {orientation: 'v', x: 1, xanchor: 'left', y: (low + high) / 2, yanchor: 'middle', yref: 'paper'};
    return {...trace, colorbar: {...trace.colorbar, ...at, len: high - low, thickness: 8}};
  });
}

// Pictures keep their shape: all of the figure shrinks, what is written over them as far as it is still read.
function shrunk({layout}, ratio) {
  const annotations = (layout.annotations ?? []).map(note => ({...note, font: {...note.font, size: 8}}));
  return {...layout, annotations, height: layout.height * ratio, font: {...layout.font, size: 11}};
}

function fitted(figure, height) {
  const layout = stacked(figure, height);
  const keys = layout.showlegend === false ? 0 : figure.data.filter(trace => trace.name && trace.showlegend !== false).length;
  const more = Math.max(0, Math.ceil(keys / 2) - Math.ceil(keys / 6)) * 19;  // the legend's rows, two names in each
  const bars = panels(figure) && figure.data.some(scale);
  const foot = bars ? 60 : (layout.margin?.b ?? 80) + more;
  const annotations = layout.annotations?.map(note =>  // heads of rows begin where the rows' names do
    note.x === 0 && note.xanchor === 'left' && note.xref === 'paper' ? {...note, xshift: -90} : note);
  const margin = {...layout.margin, r: bars ? 60 : 10, b: foot};
  const tall = (layout.height ?? height) + foot - (layout.margin?.b ?? 80);
  return {...layout, margin, ...(annotations && {annotations}), height: tall, font: {...layout.font, size: 11}};
}

function draw(picture) {
  const plot = picture.querySelector('.plot');
  const figure = JSON.parse(picture.parentElement.querySelector('script').textContent);
  const small = picture.clientWidth < narrow;
  const photo = picture.classList.contains('photo');
  const layout = !small ? figure.layout
    : photo ? shrunk(figure, picture.clientWidth / parseFloat(picture.style.getPropertyValue('--width')))
    : fitted(figure, figure.layout.height);
  const data = small && panels(figure) ? barred(figure.data, layout) : figure.data;
  picture.style.setProperty('--height', `${layout.height}px`);
  picture.classList.add('drawn');
  Plotly.newPlot(plot, data, {...layout, autosize: true, ...(coarse && {dragmode: false})}, config)
    .catch(() => picture.classList.remove('drawn'));
}
const seen = new IntersectionObserver(entries => {
  for (const entry of entries.filter(one => one.isIntersecting)) {
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, {rootMargin: '400px 0px'});
for (const picture of document.querySelectorAll('.picture')) seen.observe(picture);
addEventListener('beforeprint', () => {  // on paper still pictures stand, where there are any
  for (const picture of document.querySelectorAll('.picture:not(.drawn)')) {
    if (!picture.querySelector('.still')) draw(picture);
  }
});
