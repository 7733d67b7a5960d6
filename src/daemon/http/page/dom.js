'use strict';
// Elements, and how names, numbers and times are shown. Whatever comes from the server ends up in text nodes and attributes that
// are no addresses and no code.

const SVG = 'http://www.w3.org/2000/svg';

/** An element with properties and children; a string becomes text. */
function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...present(children));
  return element;
}

function replace(element, ...children) {
  element.replaceChildren(...present(children));
}

const present = (children) => children.flat(4).filter((child) => child !== null && child !== undefined && child !== '');

/** As `replace`, but what is the same stays where it is, with its focus. For elements without listeners of their own. */
function morph(element, ...children) {
  const wanted = present(children).map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  wanted.forEach((next, index) => {
    const old = element.childNodes[index];
    if (!old) element.append(next);
    else if (!old.isEqualNode(next)) become(old, next);
  });
  while (element.childNodes.length > wanted.length) element.lastChild.remove();
}

function become(old, next) {
  if (old.nodeName !== next.nodeName || old.nodeType !== Node.ELEMENT_NODE) {
    old.replaceWith(next);
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morph(old, ...[...next.childNodes]);
}

const byId = (id) => document.getElementById(id);

/** A name as it is shown: characters that are not seen, or that turn others around, are spelled out. */
function shown(name) {
  return String(name).replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
}

/** At most so many characters of it; the middle goes. */
function short(name, most) {
  const text = [...shown(name)];
  if (text.length <= most) return text.join('');
  const tail = Math.floor((most - 1) / 3);
  return text.slice(0, most - 1 - tail).join('') + '…' + text.slice(text.length - tail).join('');
}

/** A name of somebody's in an element of its own. */
const named = (name, most) => h('span', { class: 'name', title: most && name.length > most ? shown(name) : null },
  most ? short(name, most) : shown(name));

function count(number, noun) {
  return `${grouped(number)} ${noun}${number === 1 ? '' : 's'}`;
}

const grouped = (number) => number.toLocaleString('en');

/** 950, 1.2k, 34k, 5.6M. */
function compact(number) {
  for (const [size, letter] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (number >= size) return (number / size < 10 ? (Math.floor(number / size * 10) / 10) : Math.floor(number / size)) + letter;
  }
  return String(number);
}

function ago(time) {
  const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(time)) / 1000));
  if (!(seconds >= 0)) return '';
  if (seconds < 5) return 'just now';
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** The time in an element that is brought up to date by itself. */
const agoElement = (time) => h('time', { datetime: time, title: time }, ago(time));

function refreshTimes() {
  for (const element of document.querySelectorAll('time')) element.textContent = ago(element.dateTime);
}
