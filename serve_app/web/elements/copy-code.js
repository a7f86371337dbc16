import { html } from "../vendor/lit-html/lit-html.js";
import { announce } from "../announce.js";
import { asCurl, asOpenAI, asPython } from "../snippets.js";
import { Element, define } from "./element.js";

const LANGUAGES = [
  { name: "Python", code: asPython, needs: "pip install ./clients/python, in a checkout of the service" },
  { name: "curl", code: asCurl, needs: "" },
  { name: "OpenAI client", code: asOpenAI, needs: "pip install openai" },
];

/** An edit as code, to copy. `edit` is what `snippets.js` takes. */
class CopyCode extends Element {
  static properties = ["edit"];
  #chosen = LANGUAGES[0];
  #isCopied = false;

  template() {
    const code = this.#chosen.code(this.edit);
    return html`<section class="copy-code" aria-label="The edit as code">
      <fieldset class="choices">
        <legend class="visually-hidden">Language</legend>
        ${LANGUAGES.map((language) => html`<label class="choice">
          <input type="radio" name="language" .checked=${language === this.#chosen} @change=${() => this.#choose(language)} />
          <span>${language.name}</span>
        </label>`)}
      </fieldset>
      <pre tabindex="0" aria-label=${`${this.#chosen.name} code`}><code>${code}</code></pre>
      <div class="choices">
        <button type="button" @click=${() => this.#copy(code)}>${this.#isCopied ? "Copied" : "Copy"}</button>
        <span class="muted small">${this.#chosen.needs}</span>
      </div>
    </section>`;
  }

  #choose(language) {
    this.#chosen = language;
    this.#isCopied = false;
    this.update();
  }

  async #copy(code) {
    try {
      await navigator.clipboard.writeText(code);
    } catch {
      // Browsers have a clipboard only on https and on this machine.
      getSelection().selectAllChildren(this.querySelector("code"));
      return announce("The code is selected. Copy it with your keyboard.");
    }
    this.#isCopied = true;
    announce("The code is copied.");
    this.update();
  }
}

define("copy-code", CopyCode);
