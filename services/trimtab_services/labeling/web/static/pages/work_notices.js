// What can come between a labeler and a task: another tab, a lease that ended, a draft that an earlier page left.

import { notice, withdraw } from "../notices.js";
import { forgetLeft } from "../task_state/draft.js";

const NAMES = ["draft", "lease", "left", "back", "withdrawn"];

export class TaskNotices {
  #parts;

  /**
   * @param {object} parts `draft` and `lease` of the task; `reload()` asks for it again; `read()` and `restore(label)`
   *   what the editor shows; `next()` goes on to another task.
   */
  constructor(parts) {
    this.#parts = parts;
    parts.draft.addEventListener("state", () => this.#draftChanged());
    parts.draft.addEventListener("lease", (event) => parts.lease.told(event.detail));
    parts.lease.addEventListener("state", () => this.#leaseChanged());
    parts.lease.addEventListener("told", () => this.#leaseTold());
    parts.lease.addEventListener("closed", (event) => this.closed(event.detail));
    this.#leaseTold();
  }

  end() {
    withdraw(...NAMES);
  }

  /** The task was sent or skipped by another tab. */
  closed(error) {
    withdraw("lease");
    notice("draft", `${error.message}. What stands here has not been sent; copy what you need.`, {
      kind: "error",
      actions: [["Next task", () => this.#parts.next()]],
    });
  }

  /** A label came after others had finished the task. */
  late(error) {
    withdraw("draft");
    notice("lease", `${error.message}. It does not count any more, but it is not lost.`, {
      kind: "error",
      actions: [["Next task", () => this.#parts.next()]],
    });
  }

  /** Offers what an earlier page kept and the service's draft does not follow. */
  offer(record) {
    notice("left", "This browser kept another draft of this task, which the service does not have.", {
      kind: "warning",
      actions: [
        ["Use it", () => this.#use(record)],
        ["Throw it away", () => this.#forget(record)],
      ],
    });
  }

  #use(record) {
    this.#replace(record.pending.content.label);
    this.#parts.draft.changed();
    this.#forget(record);
  }

  #forget(record) {
    withdraw("left");
    forgetLeft(record);
  }

  #draftChanged() {
    const { state, error } = this.#parts.draft;
    if (state === "closed") return this.closed(error);
    if (state !== "conflict") return withdraw("draft");
    notice("draft", "Another tab or device has saved another draft of this task since. Which one do you go on with?", {
      kind: "warning",
      actions: [
        ["What stands here", () => this.#parts.draft.overwrite()],
        ["The other one", () => this.#takeOther()],
      ],
    });
  }

  async #takeOther() {
    const task = await this.#parts.reload();
    if (task.state !== "leased") return this.closed({ message: `This task is ${task.state} already` });
    await this.#parts.draft.adopt(task.draft);
    this.#replace(task.draft?.content.label ?? {});
  }

  /** Shows another draft; what stood there can be had back. */
  #replace(label) {
    const { read, restore, draft } = this.#parts;
    const before = read();
    restore(label);
    notice("back", "The other draft is shown.", {
      actions: [
        [
          "Bring back what stood here",
          () => {
            restore(before);
            draft.changed();
            withdraw("back");
          },
        ],
      ],
      canClose: true,
    });
  }

  #leaseTold() {
    if (!this.#parts.lease.isWithdrawn) return withdraw("withdrawn");
    notice(
      "withdrawn",
      "This task was taken out of the project. You may still send it, but it counts only if the task is put back.",
      { kind: "warning", actions: [["Next task", () => this.#parts.next()]] },
    );
  }

  #leaseChanged() {
    const { lease } = this.#parts;
    if (lease.state === "held") return withdraw("lease");
    const texts = {
      ending: ["This task goes to somebody else soon. Are you still there?", "I am still here", () => lease.renew()],
      over: [
        "The time for this task is over, and others may take it. What you did is kept.",
        "Go on with it",
        () => lease.renew(),
      ],
      lost: [
        "The time for this task was over, and others took it. What you did is kept, and you may still try to send it.",
        "Next task",
        () => this.#parts.next(),
      ],
    };
    const [text, label, act] = texts[lease.state];
    notice("lease", text, { kind: "warning", actions: [[label, act]] });
  }
}
