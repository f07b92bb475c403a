// How many pictures of some size each figure shows.
() => [...document.querySelectorAll('figure')].map(figure =>
  [...figure.querySelectorAll('svg, img, canvas')].filter(picture => {
    const {width, height} = picture.getBoundingClientRect();
    return picture.checkVisibility() && width > 100 && height > 100 && picture.naturalWidth !== 0;
  }).length)
