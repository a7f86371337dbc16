import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { Element, define } from "./elements/element.js";
import "./elements/key-dialog.js";
import { ANNOUNCED, announcements } from "./announce.js";
import { VIEWS, hrefOf, viewOf } from "./views.js";

/** The page: its header with the navigation, the view that the hash names, and what screen readers are told. */
class EditsApp extends Element {
  #shown = null;
  #failure = null;
  #announcement = "";

  connected() {
    this.listen(window, "hashchange", () => this.#open());
    this.listen(announcements, ANNOUNCED, (event) => {
      this.#announcement = event.detail;
      this.update();
    });
    this.#open();
  }

  async #open() {
    const { view, path } = viewOf(location.hash);
    try {
      await view.load();
      this.#failure = null;
    } catch {
      this.#failure = "A part of this page could not be loaded. Check the connection and load the page again.";
    }
    // Another view may have been opened meanwhile.
    if (viewOf(location.hash).view !== view) return;
    if (this.#shown?.localName !== view.element) this.#shown = document.createElement(view.element);
    this.#shown.path = path;
    document.title = view.title && view !== VIEWS[0] ? `${view.title} · Image edits` : "Image edits";
    this.update();
  }

  template() {
    const current = viewOf(location.hash).view;
    const link = (view) => html`
      <a href=${hrefOf(view.name)} aria-current=${view === current ? "page" : nothing}>${view.title}</a>
    `;
    return html`
      <a class="skip-link" href="#main" @click=${this.#skip}>Skip to the content</a>
      <header class="bar">
        <a class="brand" href=${hrefOf("edit")}><img src="web/icon.svg" alt="" width="24" height="24" />Image edits</a>
        <nav aria-label="Views">${VIEWS.filter((view) => view.title).map(link)}</nav>
        <a class="quiet" href="docs">API</a>
      </header>
      <main id="main" tabindex="-1">
        ${this.#failure ? html`<p class="problem page-problem" role="alert">${this.#failure}</p>` : this.#shown}
      </main>
      <key-dialog></key-dialog>
      <div class="visually-hidden" role="status" aria-live="polite">${this.#announcement}</div>
    `;
  }

  #skip = (event) => {
    event.preventDefault(); // the hash names the view
    this.querySelector("main").focus();
  };
}

define("edits-app", EditsApp);
