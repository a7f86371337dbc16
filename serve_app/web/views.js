/**
 * The views of the page. Each is a custom element that its module defines; the first part of the URL's hash names it.
 * To add a view, add its row and a module in `elements/`. The module is loaded when the view is first opened.
 *
 * A view gets the other parts of the hash as its property `path`: `#compare/a/b` gives `["a", "b"]`. A view without a
 * `title` is not in the navigation.
 */
export const VIEWS = [
  { name: "edit", title: "Edit", element: "edit-view", load: () => import("./elements/edit-view.js") },
  { name: "compare", title: null, element: "compare-view", load: () => import("./elements/compare-view.js") },
  { name: "history", title: "History", element: "history-view", load: () => import("./elements/history-view.js") },
  { name: "sweeps", title: "Sweeps", element: "sweeps-view", load: () => import("./elements/sweeps-view.js") },
  { name: "training", title: "Training", element: "training-view", load: () => import("./elements/training-view.js") },
  { name: "quality", title: "Quality", element: "quality-view", load: () => import("./elements/quality-view.js") },
  { name: "operation", title: "Operation", element: "operation-view", load: () => import("./elements/operation-view.js") },
];

/** The address of a view: `hrefOf("compare", "a", "b")` is `#compare/a/b`. */
export function hrefOf(name, ...path) {
  return `#${[name, ...path].map(encodeURIComponent).join("/")}`;
}

/** The view that a hash names, the first one if it names none, and the rest of its path. */
export function viewOf(hash) {
  const [name, ...path] = hash.replace(/^#/, "").split("/").map(decoded);
  const view = VIEWS.find((view) => view.name === name);
  return view ? { view, path } : { view: VIEWS[0], path: [] };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
