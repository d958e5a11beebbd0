// The replicas that the service knows of, with their version, lag and load.

import { get } from "../api.js";
import { repeatedly } from "../connection.js";
import { fill, h } from "../dom.js";
import { stateBadge } from "../format.js";
import { cell, row, rowHead, stackedTable } from "./stacked.js";

const EVERY_MS = 5000;
const HEADS = ["Service", "Address", "State", "Version", "Newest", "Lag", "Waiting", "Running"];

export async function replicasPage(place) {
  const heading = h("h1", { tabindex: "-1" }, "Replicas");
  const { replicas } = await get("replicas");
  if (replicas === null) return showUnknown(place, heading);
  const { element, body } = stackedTable("Replicas", HEADS);
  const show = (told) => fill(body, told.map(replicaRow));
  show(replicas);
  fill(place, heading, element);
  return repeatedly(async () => show((await get("replicas")).replicas), () => EVERY_MS);
}

function showUnknown(place, heading) {
  fill(
    place,
    heading,
    h("p", {}, "Runs find their replicas themselves here, so this service does not know them."),
    h(
      "p",
      {},
      "The page of a run tells how many it uses. ",
      h("code", {}, "trimtab status --release NAME"),
      " shows each with its version, lag and load.",
    ),
  );
}

function replicaRow(one) {
  const values = [one.version, one.newest, one.lag, one.waiting, one.running];
  return row(
    rowHead(one.service),
    cell("Address", one.address, one.note && h("p", { class: "note" }, one.note)),
    cell("State", stateBadge(one.state)),
    values.map((value, index) => cell(HEADS[index + 3], value)),
  );
}
