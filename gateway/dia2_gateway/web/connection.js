// The WebSocket /v1/stream: one utterance after the other.

/**
 * @typedef {{text: string, start: number}} Word  `start` in seconds from the first sample
 * @typedef {{code: string, message: string, field?: string, retry_after_s?: number}} Failure
 * @typedef {object} Listener  what one utterance is told; exactly one of `done`, `cancelled` and `failed` is the last
 * @property {(pcm: Int16Array) => void} audio
 * @property {(words: Word[]) => void} words
 * @property {(reason: string) => void} done
 * @property {(spoken: Word[]) => void} cancelled
 * @property {(failure: Failure) => void} failed
 */

const TOO_BIG = 1009; // the code with which a server closes on a message longer than it reads
const PATIENCE_MS = 3_000; // for the end of a cancelled utterance; then a fresh connection is quicker

export class Connection {
  #url;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Promise<unknown>} */
  #opened = Promise.resolve();
  /** @type {Listener | null} */
  #listener = null;
  #free = () => {};
  #over = Promise.resolve(); // once the server has nothing more to say about the last utterance

  /** @param {() => string | URL} url */
  constructor(url) {
    this.#url = url;
  }

  /** Connects, unless it is connected. Ahead of time it saves the hand-shake. */
  open() {
    if (this.#socket) return this.#opened;
    const socket = new WebSocket(this.#url());
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket = socket;
    this.#opened = new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onclose = ({ code, reason }) => {
        reject(new Error("no connection"));
        if (this.#socket === socket) this.#lost(code, reason);
      };
    });
    return this.#opened;
  }

  /**
   * Begins an utterance, after the end of the one before.
   * @param {object} message  `tts` with the whole text, or `start` where it follows @param {Listener} listener
   */
  async begin(message, listener) {
    const late = setTimeout(() => this.reset(), PATIENCE_MS);
    await this.#over;
    clearTimeout(late);
    this.#listener = listener;
    this.#over = new Promise((resolve) => (this.#free = resolve));
    try {
      await this.open();
    } catch {
      return; // the listener has been told
    }
    this.send(message);
  }

  /** Sends a message, if there is a connection. @param {object} message */
  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Drops the connection; the next utterance opens another. */
  reset() {
    const socket = this.#socket;
    this.#lost(1000, "");
    socket?.close();
  }

  /** @param {ArrayBuffer | string} data */
  #receive(data) {
    if (data instanceof ArrayBuffer) {
      this.#listener?.audio(new Int16Array(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "words") this.#listener?.words(message.words);
    else if (message.type === "done") this.#finish((listener) => listener.done(message.reason));
    else if (message.type === "cancelled") this.#finish((listener) => listener.cancelled(message.spoken));
    else if (message.type === "error") this.#failed(message);
  }

  /** @param {Failure & {id?: string}} failure */
  #failed(failure) {
    this.#finish((listener) => listener.failed(failure));
    // Without an id the server refused one message, and would go on as if it had not been sent: give all of it up.
    if (!failure.id) this.reset();
  }

  /** @param {number} code @param {string} reason */
  #lost(code, reason) {
    this.#socket = null;
    const kind = code === TOO_BIG ? "too_large" : "connection_lost";
    this.#finish((listener) => listener.failed({ code: kind, message: reason || `code ${code}` }));
  }

  /** @param {(listener: Listener) => void} tell */
  #finish(tell) {
    const listener = this.#listener;
    this.#listener = null;
    this.#free();
    if (listener) tell(listener);
  }
}
