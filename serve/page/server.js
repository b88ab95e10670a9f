// One way to ask the server: JSON back, problems as errors with a sentence for people, a key where it wants one.

export const by = (id) => document.getElementById(id);

const KEY = "visual-search-key";

export async function api(url, options = {}) {
  const response = await send(url, options);
  if (response.status === 401 && (await askForKey())) return api(url, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.detail ?? `The server answered ${response.status}.`), { code: answer.code });
  return answer;
}

export async function send(url, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  try {
    return await fetch(url, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("The server does not answer. Is it still running?");
  }
}

// An address for a picture that only this page may fetch: an <img> sends no key.
export async function photoOf(url) {
  const response = await send(url);
  if (!response.ok) throw new Error(`The server answered ${response.status} for the photo.`);
  return URL.createObjectURL(await response.blob());
}

const QUESTION = `
  <form method="dialog">
    <h2 id="key-title">This server asks for a key</h2>
    <label for="key">API key</label>
    <input id="key" type="password" autocomplete="off">
    <p class="note">It is kept until you close this tab.</p>
    <div class="buttons"><button value="use" class="button primary">Use it</button><button value="cancel" class="button">Cancel</button></div>
  </form>`;
let asking = null;  // one question at a time, whoever needs the key

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "key-title");
    dialog.innerHTML = QUESTION;
    document.body.append(dialog);
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use" && by("key").value.trim();
      if (given) sessionStorage.setItem(KEY, given);
      dialog.remove();
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
