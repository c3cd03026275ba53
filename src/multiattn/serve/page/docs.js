// The routes of openapi.json, without anything that is loaded from elsewhere.
"use strict";

const make = (name, text, ...children) => {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
};

const at = new URL("./", location.href).href;
document.getElementById("calls").textContent = [
  `curl -F file=@clip.mp4 ${at}v1/predict   # answers the job's id`,
  `curl ${at}v1/jobs/ID                     # state, progress, place in the queue`,
  `curl ${at}v1/jobs/ID/result              # the answer; /report: a page to keep`,
].join("\n");

fetch("openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = `${api.info.description} Version ${api.info.version}.`;
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      const rows = Object.entries(route.responses).map(([status, it]) => make("tr", "", make("td", status), make("td", it.description)));
      const body = Object.keys(route.requestBody?.content ?? {}).join(" or ");
      const card = make("section", "", make("h2", route.summary), make("p", "", make("code", `${method.toUpperCase()} ${path}`)));
      card.className = "card";
      if (route.description) card.append(make("p", route.description));
      if (body) card.append(make("p", `Takes ${body}.`));
      const table = make("table", "", make("tbody", "", ...rows));
      card.append(make("details", "", make("summary", "Answers"), table));
      document.getElementById("routes").append(card);
    }
  }
});
