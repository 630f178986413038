// The one way in which elements are made. Text is always set as text: markup in a name stays what it is, characters.

const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "selected",
  "open",
  "readOnly",
  "hidden",
  "indeterminate",
]);
const SVG = "http://www.w3.org/2000/svg";

/** An element. `on…` attributes are functions; null, undefined and false leave an attribute or a child out. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for pictures. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  // A select has no value before it has its options.
  if (element.tagName === "SELECT" && attributes?.value !== undefined) element.value = attributes.value;
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Puts `children` in the place of what `element` holds. */
export function show(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

let lastId = 0;

/** An id for an element that another one names. */
export function newId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
