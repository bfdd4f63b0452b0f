// The page at `/`. Whatever a cell printed is hostile: text goes into the page as text (`append`, `textContent`) and in no other
// way; the server's policy refuses the rest.

const POLL_MS = 1000;
const PATIENCE = 4; // a list that takes long to fetch is fetched less often: this many times as long is waited
const SESSIONS_PAGE = 500;
const MAX_SESSIONS = 5000;
const MAX_ROWS = 1000;
const CELLS_PAGE = 200;
const LONG = { lines: 24, chars: 4000 };
const HEAD = { lines: 12, chars: 2000 };
const KEY = "cellar-api-key";
const UNSETTLED = new Set(["pending", "running"]);
const STATUS_WORDS = { pending: "deferred", oom: "out of memory", timeout: "timed out" };

const at = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(label, attributes, action) {
  const node = element("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", action);
  return node;
}

// Setting what is there already would still cost a layout, and wake screen readers.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// --- the server -------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, problem) {
    super([problem?.title ?? `status ${status}`, problem?.detail].filter(Boolean).join(": "));
    this.status = status;
  }
}

async function ask(method, path, body) {
  // With a key of its own a run goes on when the page is closed: it can be asked for again.
  const headers = method === "POST" ? { "Idempotency-Key": randomName() } : {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const reply = await fetch(path, { method, headers, body: sent, cache: "no-store", credentials: "omit", redirect: "error" });
  const text = await reply.text();
  const answer = text === "" ? null : JSON.parse(text);
  if (!reply.ok) throw new Refused(reply.status, answer);
  return answer;
}

const randomName = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("");

const pathOf = (sessionId, what = "") => `/v1/sessions/${encodeURIComponent(sessionId)}${what}`;

// --- polling ----------------------------------------------------------------------------------------

class Poll {
  constructor(refresh) {
    this.refresh = refresh;
    this.timer = 0;
    this.again = false;
    this.busy = false;
  }

  // Refresh at once, or once more when the refresh that goes on has ended.
  async now() {
    clearTimeout(this.timer);
    this.again = this.busy;
    if (this.busy) return;
    this.busy = true;
    const started = performance.now();
    try {
      if (!document.hidden) await this.refresh();
    } catch (error) {
      failed(error);
    } finally {
      this.busy = false;
    }
    const took = performance.now() - started;
    this.timer = setTimeout(() => this.now(), this.again ? 0 : Math.max(POLL_MS, PATIENCE * took));
  }
}

function connected() {
  write(at("connection"), "live");
  at("connection").dataset.state = "live";
  at("forget-key").hidden = sessionStorage.getItem(KEY) === null;
  if (!at("key-form").hidden) {
    at("key-form").hidden = true;
    at("main").hidden = false;
    at("search").focus();
  }
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return askForKey(error);
  const answered = error instanceof Refused;
  write(at("connection"), answered ? error.message : "the server does not answer; trying again");
  at("connection").dataset.state = "away";
}

function askForKey(error) {
  const refused = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  write(at("connection"), "locked");
  at("connection").dataset.state = "wait";
  at("forget-key").hidden = true;
  at("main").hidden = true;
  forgetAll();
  if (refused) write(at("key-problem"), error.message);
  if (at("key-form").hidden) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

function forgetAll() {
  sessions = [];
  drawList();
  if (shown !== null) show(null);
}

// --- the list of sessions -----------------------------------------------------------------------------

let sessions = [];
let more = false;
const rows = new Map();

async function refreshList() {
  if (!at("key-form").hidden) return;
  const found = [];
  let cursor = null;
  do {
    const page = await ask("GET", `/v1/sessions?limit=${SESSIONS_PAGE}${cursor === null ? "" : `&cursor=${cursor}`}`);
    found.push(...page.sessions);
    cursor = page.next_cursor;
  } while (cursor !== null && found.length < MAX_SESSIONS);
  sessions = found.sort((one, other) => other.created_at.localeCompare(one.created_at));
  more = cursor !== null;
  connected();
  drawList();
}

function drawList() {
  const wanted = sessions.filter(matchesFilter());
  const seen = new Set();
  let behind = null;
  for (const session of wanted.slice(0, MAX_ROWS)) {
    const row = rowOf(session);
    const place = behind === null ? at("sessions").firstChild : behind.nextSibling;
    if (row !== place) at("sessions").insertBefore(row, place);
    seen.add(session.session_id);
    behind = row;
  }
  for (const [id, row] of rows) {
    if (!seen.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  write(at("count"), countText(wanted.length));
}

function countText(wanted) {
  if (sessions.length === 0) return "No sessions";
  const all = `${sessions.length}${more ? " or more" : ""} ${sessions.length === 1 ? "session" : "sessions"}`;
  const filtered = wanted === sessions.length ? all : `${wanted} of ${all}`;
  return wanted > MAX_ROWS ? `${filtered}; the newest ${MAX_ROWS} are shown` : filtered;
}

function matchesFilter() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = at("status").value;
  return (session) => {
    if (status === "pending" ? session.cells_pending === 0 : status !== "" && session.status !== status) return false;
    if (words.length === 0) return true;
    const text = `${session.session_id} ${session.runtime} ${JSON.stringify(session.metadata)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function rowOf(session) {
  const id = session.session_id;
  if (!rows.has(id)) rows.set(id, newRow(id));
  const row = rows.get(id);
  const [link] = row.children;
  const [name, status, facts] = link.children;
  write(name, id);
  drawStatus(status, session.status);
  const pending = session.cells_pending === 0 ? "" : `${session.cells_pending} pending of `;
  write(facts, `${pending}${plural(session.cells_total, "cell")} · generation ${session.generation}`);
  link.setAttribute("aria-current", String(shown?.id === id));
  return row;
}

function newRow(id) {
  const link = element("a", { href: `#${id}`, class: "row" });
  link.append(element("span", { class: "name" }), element("span", { class: "status" }), element("span", { class: "quiet" }));
  return element("li", {}, link);
}

function drawStatus(node, status) {
  write(node, STATUS_WORDS[status] ?? status);
  node.dataset.status = status;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// --- one session --------------------------------------------------------------------------------------

let shown = null; // {id, first: index of the first cell that is shown, cells: index -> {cell, node}}

function show(id) {
  shown = id === null ? null : { id, first: null, cells: new Map() };
  at("main").dataset.shown = id === null ? "list" : "session";
  at("nothing").hidden = id !== null;
  at("session").hidden = true;
  at("cells").replaceChildren();
  at("facts").replaceChildren();
  tell("");
  for (const [other, row] of rows) row.firstChild.setAttribute("aria-current", String(other === id));
  if (id !== null) detailPoll.now();
}

async function refreshDetail() {
  const view = shown;
  if (view === null || !at("key-form").hidden) return;
  let session;
  try {
    session = await ask("GET", pathOf(view.id));
  } catch (error) {
    if (!(error instanceof Refused && error.status === 404) || view !== shown) throw error;
    location.hash = "";
    return;
  }
  if (view !== shown) return;
  drawSession(session);
  view.first ??= Math.max(0, session.cells_total - CELLS_PAGE);
  await refreshCells(view, session.cells_total);
}

async function refreshCells(view, total) {
  const unsettled = [...view.cells.values()].filter(({ cell }) => UNSETTLED.has(cell.status)).map(({ cell }) => cell.index);
  const next = Math.min(view.first + view.cells.size, ...unsettled);
  if (next >= total) return;
  await fetchCells(view, next, Infinity);
}

// Cells from index `next` to before `end`, page by page.
async function fetchCells(view, next, end) {
  let after = next === 0 ? null : next - 1;
  do {
    const limit = Math.min(CELLS_PAGE, end - next);
    const page = await ask("GET", pathOf(view.id, `/cells?limit=${limit}${after === null ? "" : `&after=${after}`}`));
    if (view !== shown) return;
    drawCells(view, page.cells);
    next += page.cells.length;
    after = page.next_after;
  } while (after !== null && next < end);
}

function drawSession(session) {
  const fresh = at("session").hidden;
  at("session").hidden = false;
  write(at("session-id"), session.session_id);
  drawStatus(at("session-status"), session.status);
  const facts = {
    pending: String(session.cells_pending),
    cells: String(session.cells_total),
    generation: String(session.generation),
    runtime: session.runtime,
    isolation: session.isolation,
    recovery: session.recovery,
    memory: `${session.limits.memory_mb} MB`,
    expires: `in ${duration((new Date(session.expires_at) - Date.now()) / 1000)}`,
    ...(Object.keys(session.metadata).length > 0 && { metadata: JSON.stringify(session.metadata) }),
  };
  drawFacts(facts);
  at("run").disabled = session.cells_pending === 0;
  at("interrupt").disabled = session.status !== "running";
  if (fresh) at("session-id").focus({ preventScroll: true });
}

function drawFacts(facts) {
  const list = at("facts");
  if (list.children.length !== Object.keys(facts).length) {
    list.replaceChildren(...Object.keys(facts).map((name) => element("div", {}, element("dt", {}, name), element("dd"))));
  }
  Object.values(facts).forEach((text, i) => write(list.children[i].lastChild, text));
}

function drawCells(view, cells) {
  const list = at("cells");
  const pane = at("detail");
  const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 80;
  for (const cell of cells) {
    const known = view.cells.get(cell.index);
    if (known !== undefined && known.cell.status === cell.status) continue;
    const node = cellNode(cell);
    if (known !== undefined) known.node.replaceWith(node);
    else list.insertBefore(node, view.cells.get(cell.index + 1)?.node ?? (cell.index < view.first ? list.firstChild : null));
    view.cells.set(cell.index, { cell, node });
  }
  at("earlier").hidden = view.first === 0;
  write(at("earlier"), `Show earlier cells (${view.first})`);
  if (atEnd) pane.scrollTop = pane.scrollHeight;
}

async function showEarlier() {
  const view = shown;
  const end = view.first;
  const first = Math.max(0, end - CELLS_PAGE);
  const page = await ask("GET", pathOf(view.id, `/cells?limit=${end - first}${first === 0 ? "" : `&after=${first - 1}`}`));
  if (view !== shown || view.first !== end) return;
  drawCells(view, page.cells.reverse()); // each goes before the one behind it
  view.first = first;
  drawCells(view, []);
}

function cellNode(cell) {
  const status = element("span", { class: "status" });
  drawStatus(status, cell.status);
  const head = element("div", { class: "cell-head" }, element("span", { class: "index" }, `[${cell.index}]`), status);
  if (cell.status === "pending") {
    head.append(element("span", { class: "quiet hint" }, "runs with the next run"));
    head.append(button("Withdraw", { class: "plain", "aria-label": `Withdraw cell ${cell.index}` }, () => withdraw(cell)));
  }
  head.append(element("span", { class: "quiet measures" }, measures(cell)));
  const parts = [block("code", "Code", cell.code ?? "")];
  if (cell.stdout !== "") parts.push(block("stdout", "Output", cell.stdout));
  if (cell.stderr !== "") parts.push(block("stderr", "Errors printed", cell.stderr));
  if (cell.result !== null) parts.push(block("result", "Result", cell.result));
  if (cell.error !== null) {
    parts.push(block("error", "Error", cell.error.traceback || `${cell.error.type}: ${cell.error.message}`));
  }
  if (cell.truncated) parts.push(element("p", { class: "quiet" }, "The output was longer than is kept."));
  const attributes = { class: "cell", "data-status": cell.status, "data-index": cell.index, "aria-label": `Cell ${cell.index}` };
  return element("li", attributes, head, ...parts);
}

function measures(cell) {
  const parts = [];
  if (cell.duration_s !== null) parts.push(duration(cell.duration_s));
  if (cell.cpu_s !== null) parts.push(`${duration(cell.cpu_s)} CPU`);
  if (cell.peak_memory_bytes !== null) parts.push(`${(cell.peak_memory_bytes / 2 ** 20).toFixed(0)} MB`);
  return parts.join(" · ");
}

function duration(seconds) {
  if (seconds < 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3).replace(/\.0+$/, "")} ms`;
  if (seconds < 120) return `${seconds < 10 ? seconds.toFixed(2) : Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

// A piece of text, of which a long one shows its head until it is asked for.
function block(kind, label, text) {
  const pre = element("pre", { class: kind, "aria-label": label, tabindex: "0" });
  const lines = text.trimEnd().split("\n").length;
  if (lines <= LONG.lines && text.length <= LONG.chars) {
    pre.append(text);
    return pre;
  }
  const head = text.split("\n", HEAD.lines).join("\n").slice(0, HEAD.chars);
  const size = lines > LONG.lines ? plural(lines, "line") : `${text.length} characters`;
  const toggle = button("", { class: "plain toggle", "aria-expanded": "true" }, () => fold(toggle.ariaExpanded === "true"));
  const fold = (folded) => {
    write(pre, folded ? head : text);
    pre.classList.toggle("folded", folded);
    toggle.ariaExpanded = String(!folded);
    write(toggle, folded ? `Show all of the ${label.toLowerCase()}: ${size}` : "Show less");
  };
  fold(true);
  return element("div", { class: "long" }, pre, toggle);
}

// --- actions ------------------------------------------------------------------------------------------

function tell(text, bad = false) {
  write(at("notice"), text);
  at("notice").classList.toggle("bad", bad);
}

// What it comes to is told, unless another session is shown by then.
async function act(doing, work) {
  const view = shown;
  tell(doing);
  detailPoll.now();
  try {
    const done = await work(view.id);
    if (view === shown) tell(done);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askForKey(error);
    else if (view === shown) tell(error.message, true);
    return false;
  } finally {
    detailPoll.now();
    listPoll.now();
  }
  return true;
}

function run(body) {
  return act("Running", async (id) => {
    const done = await ask("POST", pathOf(id, "/run"), body);
    return `Run ended: ${STATUS_WORDS[done.status] ?? done.status}, ${plural(done.cells.length, "cell")} in ${duration(done.duration_s)}`;
  });
}

function defer(code) {
  return act("Queueing", async (id) => {
    const { cells } = await ask("POST", pathOf(id, "/cells"), { code });
    return `Cell ${cells[0].index} is deferred`;
  });
}

function withdraw(cell) {
  return act("Withdrawing", async (id) => {
    await ask("DELETE", pathOf(id, `/cells/${encodeURIComponent(cell.cell_id)}`));
    return `Cell ${cell.index} was withdrawn`;
  });
}

function interrupt() {
  return act("Interrupting", async (id) => {
    await ask("POST", pathOf(id, "/interrupt"));
    return "Interrupted";
  });
}

async function reset() {
  if (!(await confirmed("Reset this session?", "Its variables and files are gone. Cells that are deferred stay.", "Reset"))) return;
  act("Resetting", async (id) => {
    const { generation } = await ask("POST", pathOf(id, "/reset"));
    return `Fresh: generation ${generation}`;
  });
}

async function remove() {
  if (!(await confirmed("Delete this session?", "It is gone for good, with all its cells.", "Delete"))) return;
  act("Deleting", async (id) => {
    await ask("DELETE", pathOf(id));
    location.hash = "";
    return "";
  });
}

function confirmed(title, text, yes) {
  const dialog = at("confirm");
  write(at("confirm-title"), title);
  write(at("confirm-text"), `${shown.id}: ${text}`);
  write(at("confirm-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// The field is emptied at once, and gets its code back if the server refuses it.
async function compose(deed) {
  const field = at("code");
  const code = field.value;
  if (code.trim() === "") return field.focus();
  field.value = "";
  field.focus();
  if (!(await deed(code)) && field.value === "") field.value = code;
}

// --- beginning ----------------------------------------------------------------------------------------

const listPoll = new Poll(refreshList);
const detailPoll = new Poll(refreshDetail);

function follow() {
  const id = location.hash.slice(1);
  show(/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/.test(id) ? id : null);
  listPoll.now();
}

async function introduce() {
  const info = await ask("GET", "/v1/info");
  write(at("server"), `${info.version} · isolation ${info.isolation.tier}`);
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  write(at("key-problem"), "");
  unlock();
});

async function unlock() {
  try {
    await introduce();
    connected();
  } catch (error) {
    failed(error);
  }
  follow();
}

at("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  listPoll.now();
});
at("search").addEventListener("input", drawList);
at("status").addEventListener("input", drawList);
at("back").addEventListener("click", () => (location.hash = ""));
at("run").addEventListener("click", () => run({}));
at("interrupt").addEventListener("click", interrupt);
at("reset").addEventListener("click", reset);
at("delete").addEventListener("click", remove);
at("earlier").addEventListener("click", showEarlier);
at("defer").addEventListener("click", () => compose(defer));
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  compose((code) => run({ code }));
});
at("code").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  compose(event.shiftKey ? defer : (code) => run({ code }));
});
addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  listPoll.now();
  detailPoll.now();
});
unlock();
