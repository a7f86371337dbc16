import { render } from "../vendor/lit-html/lit-html.js";

/**
 * A custom element that renders a lit-html template into itself.
 *
 * A subclass has `template()`, and may name in `static properties` the properties whose change renders it again. It has
 * no shadow root, so that `styles.css` applies to it and labels may refer to its fields.
 */
export class Element extends HTMLElement {
  static properties = [];
  #waits = false;
  #connection = new AbortController();

  /** The signal that ends with the element's time in the document: for listeners and fetches. */
  get connection() {
    return this.#connection.signal;
  }

  connectedCallback() {
    this.#connection = new AbortController();
    this.connected();
    this.#render();
  }

  disconnectedCallback() {
    this.#connection.abort();
    this.disconnected();
  }

  connected() {}
  disconnected() {}
  /** Called after each rendering. */
  rendered() {}

  /** Listen to `target` while the element is in the document. */
  listen(target, type, listener) {
    target.addEventListener(type, listener, { signal: this.connection });
  }

  /** Render soon; several calls in one task render once. */
  update() {
    if (this.#waits) return;
    this.#waits = true;
    queueMicrotask(() => {
      this.#waits = false;
      if (this.isConnected) this.#render();
    });
  }

  #render() {
    render(this.template(), this, { host: this });
    this.rendered();
  }
}

/** Register an element, with accessors that render again for its `static properties`. */
export function define(name, type) {
  for (const property of type.properties) {
    const field = Symbol(property);
    Object.defineProperty(type.prototype, property, {
      get() {
        return this[field];
      },
      set(value) {
        if (Object.is(this[field], value)) return;
        this[field] = value;
        this.update();
      },
    });
  }
  customElements.define(name, type);
}
