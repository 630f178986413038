// Runs before anything is painted, so that no page flashes in the wrong colours. A choice of light or dark is no
// secret: it may outlive the tab.
"use strict";

document.documentElement.dataset.theme =
  localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
