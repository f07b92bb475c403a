// How far a table must shrink on paper, where 822 px fit at the print size of tables (see report.css).
for (const table of document.querySelectorAll('.table > table')) {
  table.style.width = 'min-content';
  table.style.setProperty('--fit', Math.min(1, 822 / table.offsetWidth));
  table.style.width = '';
}
