import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { setKeyAsker } from "../api.js";
import { Element, define } from "./element.js";

/** Asks for an API key when the service wants one. Who declines is not asked again before a reload of the page. */
class KeyDialog extends Element {
  #answer = null;
  #wasRefused = false;
  #isDeclined = false;

  connected() {
    setKeyAsker((wasRefused) => this.#ask(wasRefused));
  }

  template() {
    return html`<dialog aria-labelledby="key-title" @cancel=${this.#decline}>
      <form class="key-form" @submit=${this.#accept}>
        <h2 id="key-title">This service needs an API key</h2>
        ${this.#wasRefused ? html`<p class="problem" role="alert">The service does not know this key.</p>` : nothing}
        <label for="api-key">API key</label>
        <input id="api-key" type="password" autocomplete="off" autocapitalize="off" spellcheck="false" required />
        <p class="muted small">It is kept in this tab until you close it. Who runs the service makes keys with <code>edits-server keys new</code>.</p>
        <div class="choices">
          <button class="primary">Use this key</button>
          <button type="button" @click=${this.#decline}>Not now</button>
        </div>
      </form>
    </dialog>`;
  }

  #ask(wasRefused) {
    if (this.#isDeclined) return Promise.resolve(null);
    this.#wasRefused = wasRefused;
    this.update();
    return new Promise((resolve) => {
      this.#answer = resolve;
      queueMicrotask(() => this.querySelector("dialog").showModal());
    });
  }

  #accept = (event) => {
    event.preventDefault();
    const field = this.querySelector("input");
    this.#close(field.value.trim());
    field.value = "";
  };

  #decline = () => {
    this.#isDeclined = true;
    this.#close(null);
  };

  #close(key) {
    this.querySelector("dialog").close();
    this.#answer?.(key);
    this.#answer = null;
  }
}

define("key-dialog", KeyDialog);
