// Shows what a link to the glossary or to a reference leads to, beside it, under the pointer or the keyboard's focus.
const card = document.createElement('div');
card.className = 'card';
card.id = 'card';
card.setAttribute('role', 'tooltip');
card.hidden = true;
document.body.append(card);
let waiting;
function hide() { card.hidden = true; }
function later() { waiting = setTimeout(hide, 200); }
function show(link) {
  clearTimeout(waiting);
  const about = document.getElementById(decodeURIComponent(link.hash.slice(1)));
  if (!about) return;
  card.replaceChildren(...[...about.childNodes].map(node => node.cloneNode(true)));
  card.hidden = false;
  link.setAttribute('aria-describedby', card.id);
  const at = link.getClientRects()[0], margin = 12;
  const left = Math.max(margin, Math.min(at.left, document.documentElement.clientWidth - card.offsetWidth - margin));
  const below = at.bottom + card.offsetHeight + margin < innerHeight;
  card.style.left = `${left + scrollX}px`;
  card.style.top = `${(below ? at.bottom + 4 : at.top - card.offsetHeight - 4) + scrollY}px`;
}
for (const link of document.querySelectorAll('a.term, a.cite')) {
  link.addEventListener('mouseenter', () => show(link));
  link.addEventListener('focus', () => show(link));
  link.addEventListener('mouseleave', later);
  link.addEventListener('blur', later);
}
card.addEventListener('mouseenter', () => clearTimeout(waiting));
card.addEventListener('mouseleave', later);
addEventListener('keydown', event => { if (event.key === 'Escape') hide(); });
