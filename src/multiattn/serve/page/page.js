// The page: one file in, its job watched, its answer shown. All that comes from a file or the server is inserted as text.
"use strict";

const POLL_MS = 500;
const TRACKS = 6; // colours in page.css; further faces take them again, dashed
const TONES = { "looks manipulated": "manipulated", "no sign found": "clear", "cannot tell": "unsure" };
const $ = (id) => document.getElementById(id);
const drawingWidth = () => (innerWidth < 600 ? 380 : 720);
let model = null;
let job = null; // the id of what is watched; null: nothing
let upload = null; // the request that sends a file

function make(name, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  return fill(element, text, attributes, children);
}

function draw(name, { text, ...attributes } = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  return fill(element, text, attributes, children);
}

function fill(element, text, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter(Boolean));
  return element;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Error(await wordsOf(response));
  return response.status === 204 ? null : response.json();
}

async function wordsOf(response) {
  try {
    const { detail } = await response.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function show(section) {
  for (const id of ["start", "work", "answer"]) $(id).hidden = id !== section;
}

function complain(words) {
  startAgain();
  $("trouble").textContent = words;
  $("trouble").hidden = false;
}

function progress(share, words, seconds) {
  $("bar").value = share;
  if ($("step").textContent !== words) $("step").textContent = words; // a reader says each step once
  $("clock").textContent = seconds ? `${Math.round(seconds)} s` : "";
}

function take(files) {
  if (job || upload) return;
  if (files.length !== 1) return complain("Expected one file. Drop a single video or picture.");
  const [file] = files;
  if (model && file.size > 1e6 * model.limits.max_upload_mb) {
    return complain(`${file.name} has ${Math.ceil(file.size / 1e6)} MB; ${model.limits.max_upload_mb} MB at most are taken.`);
  }
  $("trouble").hidden = true;
  show("work");
  $("working").textContent = file.name;
  $("working").focus();
  progress(0, "Sending the file");
  send(file);
}

function send(file) {
  const body = new FormData();
  body.append("file", file);
  upload = new XMLHttpRequest(); // which tells how much is sent
  upload.open("POST", "v1/predict");
  upload.upload.onprogress = (event) => progress(event.total ? (0.1 * event.loaded) / event.total : 0, "Sending the file");
  upload.onerror = () => complain("The file could not be sent. Is the server still running?");
  upload.onload = () => {
    let reply = {};
    try {
      reply = JSON.parse(upload.responseText);
    } catch { /* words of a proxy */ }
    if (upload.status !== 202) return complain(`${file.name}: ${reply.detail ?? `the server answered ${upload.status}.`}`);
    upload = null;
    watch(reply.id);
  };
  upload.send(body);
}

async function watch(id) {
  job = id;
  history.replaceState(null, "", `#${id}`); // so that a page that is loaded again finds its answer
  try {
    while (job === id) {
      const status = await ask(`v1/jobs/${id}`);
      if (job !== id) return;
      $("working").textContent = status.file;
      if (status.state === "failed") return complain(`${status.file}: ${status.error}`);
      if (status.state === "done") {
        const result = await ask(`v1/jobs/${id}/result`);
        if (job === id) present(id, result);
        return;
      }
      const words = status.position ? `Waiting, number ${status.position} in the queue` : sentence(status.step);
      progress(0.1 + 0.9 * status.progress, words, status.seconds);
      await new Promise((done) => setTimeout(done, POLL_MS));
    }
  } catch (error) {
    if (job === id) complain(error.message);
  }
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);

async function cancel() {
  const id = job;
  upload?.abort();
  startAgain();
  if (id) await ask(`v1/jobs/${id}`, { method: "DELETE" }).catch(() => {});
}

function startAgain() {
  job = upload = null;
  history.replaceState(null, "", location.pathname);
  $("file").value = "";
  $("trouble").hidden = true;
  show("start");
  $("file").focus();
}

function present(id, result) {
  const [file] = result.files;
  const again = make("button", { type: "button", class: "primary", text: "Examine another file" });
  again.addEventListener("click", startAgain);
  const name = `multiattn-${result.record.file.sha256.slice(0, 8)}`;
  const link = (what, ending, text) => make("a", { class: "button", href: `v1/jobs/${id}/${what}`, download: `${name}.${ending}`, text });
  $("answer").replaceChildren(
    ...[
      verdict(file),
      make("div", { class: "actions" }, again, link("report", "html", "Download report"), link("result", "json", "Download JSON")),
      file.faces.length ? overTime(file) : null,
      deciding(id, result.pictures.deciding, file),
      attention(id, result.pictures.attention),
      about(file, result),
    ].filter(Boolean),
  );
  show("answer");
  $("verdict").focus();
}

function verdict(file) {
  const { answer, reasons, beside } = file.in_words;
  const card = make("section", { class: `card verdict ${TONES[answer] ?? "unsure"}` });
  card.append(make("p", { class: "name", text: file.file }), make("h2", { id: "verdict", tabindex: "-1", text: answer }));
  for (const reason of reasons) card.append(make("p", { text: `${sentence(reason)}.` }));
  if (file.probability !== null) card.append(scale(file.probability));
  if (beside) card.append(make("p", { class: "faint", text: `${sentence(beside)}.` }));
  if (file.doubts.length) {
    card.append(make("h3", { text: "Reasons to trust it less" }), make("ul", {}, ...file.doubts.map((text) => make("li", { text }))));
  }
  return card;
}

function scale(probability) {
  const W = drawingWidth();
  const above = model?.thresholds["looks manipulated"] ?? 1;
  const below = model?.thresholds["no sign found"] ?? 0;
  const bands = [["clear", 0, below], ["between", below, above], ["manipulated", above, 1]];
  const picture = draw("svg", { viewBox: `0 0 ${W} 64`, role: "img", "aria-label": `P(fake) ${probability.toFixed(3)}, on a scale from 0 to 1` });
  for (const [kind, from, to] of bands) {
    if (to > from) picture.append(draw("rect", { class: `band-${kind}`, x: W * from + 1, y: 28, width: W * (to - from) - 2, height: 12, rx: 4 }));
  }
  const x = W * probability;
  const anchor = probability < 0.12 ? "start" : probability > 0.88 ? "end" : "middle";
  picture.append(
    draw("path", { class: "needle", d: `M${x} 42l-7 -18h14z` }),
    draw("text", { class: "said", x, y: 17, "text-anchor": anchor, text: `P(fake) ${probability.toFixed(3)}` }),
    draw("text", { x: 0, y: 58, text: below > 0 ? "no sign found" : "0" }),
    draw("text", { x: W, y: 58, "text-anchor": "end", text: above < 1 ? "looks manipulated" : "1" }),
  );
  return make("div", { class: "scale" }, picture);
}

function overTime(file) {
  const isVideo = file.coverage.frames > 1;
  const card = make("section", { class: "card" }, make("h2", { text: isVideo ? "P(fake) over time" : "Faces" }));
  if (isVideo) card.append(timeline(file));
  const rows = file.faces.map((face) => {
    const spans = face.spans.map(([a, b]) => (b > a ? `${a.toFixed(1)} to ${b.toFixed(1)}` : a.toFixed(1))).join(", ");
    return make(
      "li", { class: `t${face.track % TRACKS}` },
      make("i", { "aria-hidden": "true" }),
      make("span", { text: `Face ${face.track + 1}` }),
      make("span", { class: "number", text: `P(fake) ${face.probability.toFixed(3)}` }),
      make("span", { class: "faint", text: isVideo ? `${face.frames.length} of ${file.coverage.frames} frames, seconds ${spans}` : "" }),
    );
  });
  card.append(make("ul", { class: "faces" }, ...rows));
  return card;
}

function timeline(file) {
  const [W, H, left, right, top, bottom] = [drawingWidth(), 230, 34, 12, 10, 34];
  const times = file.faces.flatMap((face) => face.frames.map((frame) => frame.seconds));
  const first = Math.min(0, ...times);
  const last = Math.max(...times, first + 1e-9);
  const x = (seconds) => (left + ((W - left - right) * (seconds - first)) / (last - first)).toFixed(1);
  const y = (value) => (top + (H - top - bottom) * (1 - value)).toFixed(1);
  const words = `P(fake) over ${last.toFixed(1)} seconds, a line for each of ${file.faces.length} faces; the list below has their figures`;
  const picture = draw("svg", { class: "timeline", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": words });
  for (const value of [0, 0.5, 1]) {
    picture.append(
      draw("line", { class: "grid", x1: left, x2: W - right, y1: y(value), y2: y(value) }),
      draw("text", { x: left - 6, y: +y(value) + 4, "text-anchor": "end", text: String(value) }),
    );
  }
  for (let part = 0; part <= 4; part++) {
    const seconds = first + ((last - first) * part) / 4;
    const anchor = part === 4 ? "end" : "middle";
    picture.append(draw("text", { x: x(seconds), y: H - 10, "text-anchor": anchor, text: `${seconds.toFixed(last - first < 20 ? 1 : 0)}${part === 4 ? " s" : ""}` }));
  }
  picture.append(draw("line", { class: "whole", x1: left, x2: W - right, y1: y(file.probability), y2: y(file.probability) }));
  for (const face of file.faces) {
    const lines = face.spans.map(([from, to]) => {
      const inside = face.frames.filter((frame) => frame.seconds >= from && frame.seconds <= to);
      return draw("polyline", { points: inside.map((frame) => `${x(frame.seconds)},${y(frame.probability)}`).join(" ") });
    });
    const dots = face.frames.map((frame) =>
      draw("circle", { cx: x(frame.seconds), cy: y(frame.probability), r: 3.2 },
        draw("title", { text: `Face ${face.track + 1}, frame ${frame.frame_index}, ${frame.seconds.toFixed(2)} s: ${frame.probability.toFixed(3)}` })));
    picture.append(draw("g", { class: `t${face.track % TRACKS} dash${Math.floor(face.track / TRACKS) % 3}` }, ...lines, ...dots));
  }
  return make("div", {}, picture, make("p", { class: "faint", text: "Dashed: the whole file." }));
}

function picture(id, file, alt, ...caption) {
  const image = make("img", { src: `v1/jobs/${id}/pictures/${file}`, alt, loading: "lazy" });
  return make("figure", {}, image, caption.length ? make("figcaption", {}, ...caption) : null);
}

function deciding(id, crops, file) {
  if (!crops.length) return null;
  const isVideo = file.coverage.frames > 1;
  const figures = crops.map((crop) => {
    const where = `face ${crop.track + 1} at ${crop.seconds.toFixed(2)} s`;
    const probability = make("b", { text: crop.probability.toFixed(3) });
    const caption = [isVideo && `${crop.seconds.toFixed(2)} s`, file.faces.length > 1 && `face ${crop.track + 1}`].filter(Boolean).join(", ");
    return picture(id, crop.file, `${sentence(where)}, P(fake) ${crop.probability.toFixed(2)}`, probability, caption);
  });
  const words = "The faces as the network got them, those with the highest P(fake) first, then those with the lowest.";
  const title = make("h2", { text: isVideo ? "Frames that decided" : "What the network saw" });
  return make("section", { class: "card" }, title, make("p", { class: "faint", text: words }), make("div", { class: "strip" }, ...figures));
}

function attention(id, rows) {
  if (!rows.length) return null;
  const card = make("section", { class: "card" }, make("h2", { text: "Where the network looked" }));
  for (const row of rows) {
    const figures = row.files.map((file, number) =>
      picture(id, file, number ? `Attention map ${number} over the face` : "The face", number ? `map ${number}` : "the face"));
    card.append(make("p", { class: "faint", text: `P(fake) ${row.probability.toFixed(3)} by ${row.model}; dark is little attention, bright is much.` }), make("div", { class: "maps" }, ...figures));
  }
  return card;
}

function about(file, result) {
  const { record } = result;
  const list = (lines) => make("ul", {}, ...lines.map((text) => make("li", { text })));
  const facts = [
    ["File", `${record.file.bytes.toLocaleString("en")} bytes`],
    ["SHA-256", record.file.sha256],
    ...record.models.flatMap((it) => [["Model", `${it.name}, fingerprint ${it.fingerprint}`], ["SHA-256 of its weights", it.sha256]]),
    ["Examined", `${record.date.replace("T", " ").replace("+00:00", " UTC")}, multiattn ${record.version}`],
    ["Frames", `${file.coverage.frames} decoded, ${file.coverage.frames_with_face} with a face`],
  ];
  const rows = facts.flatMap(([term, text]) => [make("dt", { text: term }), make("dd", { text })]);
  const known = [...result.notes, ...(model?.thresholds_rest_on ? [`${model.thresholds_rest_on}.`] : [])];
  return make(
    "section", { class: "card" },
    make("h2", { text: "Not examined" }), list(record.not_examined),
    make("details", {}, make("summary", { text: "What the answer rests on" }), list(known), make("dl", {}, ...rows)),
  );
}

for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (!$("start").hidden || !$("answer").hidden) {
    job = null;
    take(event.dataTransfer.files);
  }
});
$("file").addEventListener("change", () => $("file").files.length && take($("file").files));
$("cancel").addEventListener("click", cancel);

const earlier = location.hash.slice(1);
ask("v1/model").then((found) => {
  model = found;
  const names = new Set(model.models.map((it) => it.name.split("/")[0]));
  const count = model.models.length;
  $("model").textContent = `by ${[...names].join(", ")}, ${count} ${count > 1 ? "networks" : "network"}`;
  const { max_upload_mb: megabytes, max_minutes: minutes } = model.limits;
  $("bounds").textContent = `Videos of up to ${minutes} minutes, and pictures; ${megabytes} MB at most`;
  if (/^[\w-]+$/.test(earlier) && !job && !upload) {
    show("work");
    watch(earlier);
  }
}).catch((error) => complain(error.message));
