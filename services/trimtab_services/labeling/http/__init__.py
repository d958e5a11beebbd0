"""The HTTP side: what the page for people calls. JSON both ways, under `/labeling/api`.

The page itself stands under `/labeling/`: `trimtab_services.labeling.web`.

**Sessions.** `POST login` sets an opaque cookie (HttpOnly, SameSite=Strict, Secure with TLS) and answers with the CSRF
token, which every request but GET sends back as the header `x-csrf-token`; `GET me` tells it again after a reload. An
error is `{"error", "reason", "message", "field", "value", "limit", "metadata"}` with a status: 400 a field is wrong,
401 no session, 403 no right or CSRF token, 404, 409 not in this state (`LEASE_LOST`, `VERSION_CONFLICT`, ...), 429 too
many tries, or beyond `people_quota`, 503 the database is away; the last two have `Retry-After` in seconds.

**Sending again.** Every change can be sent again as it is after a dropped connection: labels and skips carry a
`submission_id`, drafts a `draft_id`, both made by the page, and one that came already is answered as the first time.

| request | who | does |
| --- | --- | --- |
| `POST login` `{name, password}` | anybody | as `GET me`, and the cookie |
| `POST logout` | labeler | ends the session |
| `GET me` | labeler | `{account: {name, role, group, enabled}, csrf_token, idle_ms}`; the session ends after so \
long without a request |
| `POST me/password` `{password, new_password}` | labeler | ends the account's sessions, begins one as `login` |
| `GET projects?after=NAME` | labeler | `{projects: [PROJECT], next_after}`, archived ones for reviewers only |
| `GET projects/NAME` | labeler | PROJECT, with `instructions_tree` |
| `POST projects/NAME/next` `{}` | labeler | `{assignment}`: the one worked on, or the next; null when there is none |
| `GET projects/NAME/assignments?before=ID&limit=N` | labeler | `{assignments, next_before}`, one's own, newest first |
| `GET assignments/ID` | its labeler | ASSIGNMENT |
| `POST assignments/ID/renew` `{}` | its labeler | `{lease_left_ms}`; 409 `LEASE_LOST` where others took the task |
| `PUT assignments/ID/draft` `{draft_id, base_draft_id, content}` | its labeler | keeps a draft, renews the lease: \
`{lease_left_ms}`, 0 where it is lost; 409 `VERSION_CONFLICT`, `limit` the draft that another tab saved |
| `POST assignments/ID/submit` `{submission_id, label, active_ms?}` | its labeler | ASSIGNMENT; 409 `LEASE_LOST` where \
others finished the task after the lease: the label is kept as draft `{label, active_ms?}` |
| `POST assignments/ID/skip` `{submission_id, reason}` | its labeler | ASSIGNMENT |
| `POST assignments/ID/undo` `{}` | its labeler | ASSIGNMENT, leased again, with what was sent as draft `{label, \
active_ms?}`, or with the draft of before a skip; 409 `LEASE_LOST` where others took a skipped task; never of the \
qualification |
| `GET projects/NAME/progress` | reviewer | counts of tasks and labels |
| `GET projects/NAME/agreement` | reviewer | `{agreement, labelers, pairs}` as GetAgreement in labeling.proto |
| `GET projects/NAME/labels?after=ID&labeler=NAME&limit=N` | reviewer | `{labels, next_after}`, answers by index |
| `POST projects/NAME/qualification/LABELER` `{}` | reviewer | `{reset_tasks}` as ResetQualification in labeling.proto |
| `POST projects/NAME/withdraw` `{task_keys, restore?}` | admin | `{changed_tasks, labels}` as WithdrawTasks |
| `GET accounts?after=NAME`, `POST accounts` `{name, password, role, group}` | admin | lists, with the `groups` of all \
accounts; makes an account |
| `POST accounts/NAME` `{password?, role?, group?, enabled?}` | admin | changes an account |
| `POST projects` `{name, kind, wants_ratings, ...fields}`, `POST projects/NAME` `{...fields}` | admin | as in gRPC |
| `GET audit?after=SEQUENCE&limit=N` | admin | `{events, next_after}` |

PROJECT: `name, kind` (demonstrate, rank, compare), `instructions` (Markdown), `state` (open, closed, archived),
`wants_ratings, overlap, held_out_group, held_out_overlap, lease_ms, undo_ms, qualification_pass, flags` (names, in
their order), `limits` (`max_answer_characters, max_draft_bytes`), `mine` (`labels, skips, qualification`: `done,
wanted, agreeing, pairs, passed`; 0, 0 and null while some are left to do).
`instructions_tree` is the Markdown as texts and elements `{tag, children}`, with `href`, `start` or `align` where they
have one; markup in it is text.

ASSIGNMENT: `id, project, kind, state` (leased, submitted, skipped), `prompt, messages, context, category, answers` (in
this labeler's order), `writes_prompt, wants_ratings, lease_left_ms, undo_left_ms, draft` (`draft_id, content`; null),
`label, skip_reason`.

A label of an answer order: `{"ranking": [[2], [0, 3], [1]], "ratings": [4, 1, 7, 4], "flags": [{"hallucination": true},
{}, {}, {}]}`: places on the page, from 0, best first, ties in one group; a flag that is left out is not answered. A
demonstration: `{"completion": "..."}`, with `prompt` where `writes_prompt`.

All texts are text: a page shows them as text nodes, never as markup, and instructions node by node out of their tree.
"""

from __future__ import annotations

from trimtab_services.labeling.http.routes import routes

__all__ = ["routes"]
