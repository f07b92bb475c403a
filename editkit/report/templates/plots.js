const config = {displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'sendChartToCloud']};
for (const spec of document.querySelectorAll('.plot-frame script')) {
  const figure = JSON.parse(spec.textContent);
  Plotly.newPlot(spec.previousElementSibling, figure.data, figure.layout, config);
}
