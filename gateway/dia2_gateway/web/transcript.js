// The words of a script on the page, lit as they are heard.

/** @typedef {import("./connection.js").Word} Word */

const BREAK = /<break\s+time="([0-9]+(?:\.[0-9]*)?)s"\s*\/?>/; // as the server reads it
const LOOKAHEAD = 8; // words that the server may skip before one is taken for a new word

/** What has been typed, up to where more typing can change nothing. @param {string} text */
export function settled(text) {
  const tag = text.lastIndexOf("<") > text.lastIndexOf(">") ? text.lastIndexOf("<") : text.length;
  return text.slice(0, tag).match(/^.*\s/s)?.[0] ?? "";
}

export class Transcript {
  #box;
  /** @type {HTMLElement | null} */
  #turn = null;
  #speaker = 1;
  /** @type {{key: string, element: HTMLElement, speaker: number}[]} words of the script, in order */
  #script = [];
  #next = 0; // of the script's words, to be matched by the server's next word
  /** @type {{start: number, element: HTMLElement, text: string, speaker: number}[]} words that the server told */
  #told = [];
  #lit = 0;

  /** @param {HTMLElement} box */
  constructor(box) {
    this.#box = box;
    box.replaceChildren();
    box.classList.remove("cut");
  }

  /** The words that the server told, with the speaker of each. */
  get words() {
    return this.#told;
  }

  /** Words in the script. */
  get length() {
    return Math.max(this.#script.length, this.#told.length);
  }

  /** Shows more of the script. @param {string} text  whole words and tags */
  write(text) {
    text.split(BREAK).forEach((part, index) => {
      if (index % 2) this.#add("pause", `${Number(part)} s`).title = "Pause";
      else for (const word of part.match(/[^\s:]+:*|:+/g) ?? []) this.#write(word);
    });
  }

  /** @param {string} word  as typed, with the colons behind it, which the server takes for spaces */
  #write(word) {
    const key = word.replaceAll(":", "").replaceAll("\u2019", "'");
    if (key === "[S1]" || key === "[S2]") {
      this.#speaker = Number(key[2]);
      this.#turn = null;
    } else {
      const element = this.#add("word", word);
      if (key) this.#script.push({ key, element, speaker: this.#speaker });
    }
  }

  /** @param {string} kind @param {string} text */
  #add(kind, text) {
    if (!this.#turn) {
      this.#turn = document.createElement("p");
      this.#turn.className = `s${this.#speaker}`;
      this.#turn.append(labelled("b", "who", `S${this.#speaker} `));
      this.#box.append(this.#turn);
    }
    const element = labelled("span", kind, text);
    this.#turn.append(element, " ");
    return element;
  }

  /** Takes words that the server has begun. @param {Word[]} words */
  tell(words) {
    for (const { text, start } of words) {
      const ahead = this.#script.slice(this.#next, this.#next + LOOKAHEAD);
      const skipped = ahead.findIndex(({ key }) => key === text);
      if (skipped < 0) {
        this.#told.push({ text, start, speaker: this.#speaker, element: this.#add("word", text) });
      } else {
        this.#told.push({ text, start, ...ahead[skipped] });
        this.#next += skipped + 1;
      }
    }
  }

  /** Lights the words that have begun after so many seconds. @param {number} heard_s */
  light(heard_s) {
    const before = this.#lit;
    while (this.#lit < this.#told.length && this.#told[this.#lit].start < heard_s) this.#lit++;
    if (this.#lit === before) return;
    for (const { element } of this.#told.slice(Math.max(before - 1, 0), this.#lit)) {
      element.classList.remove("now");
      element.classList.add("heard");
    }
    const { element } = this.#told[this.#lit - 1];
    element.classList.add("now");
    const beyond = element.getBoundingClientRect().bottom - this.#box.getBoundingClientRect().bottom;
    if (beyond > -element.offsetHeight) this.#box.scrollTop += beyond + 2 * element.offsetHeight;
  }

  /** Says that no word is heard any more. @param {number} spoken @param {boolean} cut  strikes the others through */
  close(spoken, cut) {
    const heard = new Set(this.#told.slice(0, spoken).map(({ element }) => element));
    for (const element of this.#box.querySelectorAll(".word")) {
      element.classList.remove("now");
      element.classList.toggle("heard", heard.has(/** @type {HTMLElement} */ (element)));
    }
    this.#box.classList.toggle("cut", cut);
  }
}

/** @param {string} tag @param {string} kind @param {string} text */
function labelled(tag, kind, text) {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = text;
  return element;
}
