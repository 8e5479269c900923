// The server: questions with the key, edits one after another until each is acknowledged, and news.
const key = location.hash.slice(1);

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...(options.headers || {}), Authorization: `Bearer ${key}` } });
  } catch {
    throw new Problem(0, "The server does not answer.");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const detail = answer.status === 401 ? "Open the address that the terminal shows, with its key." : problem.detail;
  throw new Problem(answer.status, detail || `The server answered ${answer.status}.`);
}

export const json = async (path) => (await ask(path)).json();

export async function post(path, value) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(value) })).json();
}

export function identity() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Edits leave in order, one at a time; one that got no answer is sent again under its own name, which does it once.
export class Outbox {
  constructor(done, failed, waiting) {
    Object.assign(this, { done, failed, waiting, pending: [], busy: false });
  }

  send(edit) {
    this.pending.push(edit);
    this.waiting(this.pending.length, "");
    if (!this.busy) this.run();
  }

  async run() {
    this.busy = true;
    while (this.pending.length) {
      const edit = this.pending[0];
      try {
        const said = await post("/v1/edit", edit);
        this.pending.shift();
        this.done(edit, said);
      } catch (error) {
        if ([0, 408, 429, 500, 503, 507].includes(error.status)) {
          this.waiting(this.pending.length, error.message);
          await pause(1000);
          continue;
        }
        this.pending.shift();
        this.failed(edit, error);
      }
      this.waiting(this.pending.length, "");
    }
    this.busy = false;
  }
}

// News after `now`, which counts within one session of the server; `lost` is called where some cannot be told.
export async function follow({ now: after, session }, take, lost, state) {
  for (;;) {
    try {
      const said = await json(`/v1/events?after=${after}&session=${session}`);
      state("");
      if (said.lost) ({ now: after, session } = await lost());
      else after = said.now;
      for (const event of said.events) take(event);
      if (!said.events.length) await pause(100);
    } catch (error) {
      if (error.status === 401) return state(error.message);
      state(error.message);
      await pause(1500);
    }
  }
}
