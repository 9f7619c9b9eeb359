// What the page says when something goes wrong.

/** By the code of the error. */
export const TITLES = /** @type {Record<string, string>} */ ({
  connection_lost: "Connection lost",
  overloaded: "The server is full",
  too_many_requests: "Too many requests with this key",
  too_large: "The text is too long",
  invalid_request: "The server does not take this",
  not_found: "The server does not know this",
  idle: "Ended, since no text came",
});

/**
 * Shows a problem in place of the last one; null: there is none.
 * @param {{title: string, text: string, retry?: (() => void) | null, wait_s?: number} | null} problem
 */
export function alert(problem) {
  const box = /** @type {HTMLElement} */ (document.getElementById("alert"));
  box.replaceChildren();
  if (!problem) return;
  const title = document.createElement("strong");
  title.textContent = problem.title;
  const text = document.createElement("span");
  text.textContent = problem.text;
  box.append(title, text);
  if (problem.retry) box.append(again(problem.retry, Math.ceil(problem.wait_s ?? 0)));
  box.scrollIntoView({ block: "nearest" });
}

/** @param {() => void} retry @param {number} wait_s */
function again(retry, wait_s) {
  const button = document.createElement("button");
  button.type = "button";
  button.disabled = wait_s > 0;
  button.textContent = wait_s ? `Try again in ${wait_s} s` : "Try again";
  setTimeout(() => {
    button.disabled = false;
    button.textContent = "Try again";
  }, 1000 * wait_s);
  button.onclick = () => {
    alert(null);
    retry();
  };
  return button;
}
