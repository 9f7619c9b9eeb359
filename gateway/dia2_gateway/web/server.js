// What the page asks of the server besides speech: its voices, with the API key where one is needed.

const KEY = "dia2-api-key"; // in sessionStorage: this tab only

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (/** @type {string} */ value) => sessionStorage.setItem(KEY, value),
};

/** The address of a path of this server, wherever the page is mounted. @param {string} path */
export function address(path) {
  return new URL(path, document.baseURI);
}

/** The WebSocket's address; a browser cannot send the key in a header there. */
export function streamAddress() {
  const url = address("v1/stream");
  url.protocol = url.protocol.replace("http", "ws");
  if (key.get()) url.searchParams.set("api_key", key.get());
  return url;
}

export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * The server's voices, without their aliases. Raises Refused, with status 0 if the server cannot be reached.
 * @returns {Promise<{id: string, name: string, default: boolean}[]>}
 */
export async function voices() {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : undefined;
  const answer = await fetch(address("v1/audio/voices"), { headers }).catch(() => null);
  if (!answer) throw new Refused(0, "The server cannot be reached.");
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body.error?.message ?? `Status ${answer.status}.`);
  return body.voices.filter((/** @type {object} */ voice) => !("alias_of" in voice));
}
