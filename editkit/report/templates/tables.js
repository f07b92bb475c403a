// How far a table must shrink on paper, where 822 px fit at the print size of tables (see report.css).
for (const table of document.querySelectorAll('.table > table')) {
  table.style.width = 'min-content';
  table.style.setProperty('--fit', Math.min(1, 822 / table.offsetWidth));
  table.style.width = '';
}
// Tables of facts are sorted by their heads, and filtered by words.
const number = text => text.trim() === '' ? NaN : Number(text.replace(/[−–]/g, '-').replace(/[,%\s]|±.*$/g, ''));
function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  return isNaN(x) || isNaN(y) ? a.localeCompare(b, undefined, {numeric: true}) : x - y;
}
function sort(table, head) {
  const column = head.cellIndex, rising = head.getAttribute('aria-sort') !== 'ascending';
  for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
  const text = row => row.cells[column]?.textContent ?? '';
  const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? 1 : -1) * compare(text(a), text(b)));
  table.tBodies[0].append(...rows);
}
function filtered(table, box, found) {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...table.tBodies[0].rows];
  for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  found.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
}
for (const table of document.querySelectorAll('.facts table')) {
  if (table.tHead?.rows.length !== 1 || !table.tBodies.length || table.querySelector('[rowspan]')) continue;
  for (const head of [...table.tHead.rows[0].cells].filter(cell => cell.textContent.trim())) {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => sort(table, head));
  }
  const label = document.createElement('label'), box = document.createElement('input');
  const found = document.createElement('output');
  box.type = 'search';
  label.append('Filter ', box);
  const bar = document.createElement('p');
  bar.className = 'filter';
  bar.append(label, ' ', found);
  (table.closest('.table') ?? table).before(bar);
  box.addEventListener('input', () => filtered(table, box, found));
  filtered(table, box, found);
}
