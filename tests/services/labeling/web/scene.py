"""Projects of each kind with contents as people write them, and labels of three labelers."""

from __future__ import annotations

from typing import Any

from trimtab.v1 import labeling_pb2 as pb
from trimtab.v1.types_pb2 import ChatMessage

from ..people import Person, Service

INSTRUCTIONS = """# What to look for

Rank the answers by how **helpful**, *truthful* and harmless they are.

1. Read the prompt twice.
2. Read every answer to its end.
   - Ties are fine where two answers are equally good.

| Rating | Meaning |
| ---: | --- |
| 7 | nothing to improve |
| 1 | useless or harmful |

> When in doubt, ask in the [guide](https://example.com/guide).

```
<script>alert("in code")</script>
```

<img src=x onerror="alert('in text')"> [no](javascript:alert(1)) ![picture](https://example.com/p.png)
"""
POEM = "Write a short poem about a lighthouse keeper who is afraid of the dark."
ANSWERS = [
    "He lights the lamp before the sun has gone,\nand hums to keep the corners of the room\n"
    "from filling up. The beam goes on and on,\na broom of brightness sweeping out the gloom.",
    "Lighthouse keepers were common in the 19th century. They kept the lamp burning and the lens clean. " * 6,
    "I cannot write poems.",
    'Roses are red, <b>lighthouses</b> are tall,\n<script>document.title = "broken"</script>\nall the keepers call.',
    "منارة على البحر، وحارسٌ يخاف الظلام.",
]


def furnish(service: Service) -> dict[str, Person]:
    """Makes all of it; returns the people by name: ann, ben and cleo label, rita reviews, ada is an admin."""
    roles = {"rita": pb.ACCOUNT_ROLE_REVIEWER, "ada": pb.ACCOUNT_ROLE_ADMIN}
    people = {
        name: service.person(name, roles.get(name, pb.ACCOUNT_ROLE_LABELER))
        for name in ("ben", "cleo", "rita", "ada", "ann")
    }
    service.project("poems", wants_ratings=True, overlap=3, instructions=INSTRUCTIONS)
    task = pb.LabelTask(prompt=POEM, answers=ANSWERS, category="brainstorming", overlap=3)
    others = [
        pb.LabelTask(
            prompt=f"Name {n} lighthouses.",
            answers=[f"{n}: {word}" for word in "Eddystone Fastnet Bishop Longstone".split()],
        )
        for n in (3, 4, 5)
    ]
    service.add(*others, task, project="poems")
    for name, order in (("ben", [0, 1, 2, 3]), ("cleo", [1, 0, 3, 2])):
        for _ in others:
            given = people[name].next("poems")
            texts = sorted(given["answers"])
            ranking = [[given["answers"].index(texts[place])] for place in order]
            people[name].submit(given, {"ranking": ranking, "ratings": [3, 4, 5, 6]})
    ann = people["ann"]
    for _ in others:
        _skip(ann, ann.next("poems"))
    service.project("winners", pb.TASK_KIND_COMPARE, instructions="Which answer would you rather have?")
    turns = [("user", "What is the capital of Australia?"), ("assistant", "Canberra."), ("user", "And of New Zealand?")]
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    service.add(
        pb.LabelTask(messages=messages, answers=["Wellington.", "It is Auckland, the largest city. " * 8]),
        project="winners",
    )
    service.project("demonstrations", pb.TASK_KIND_DEMONSTRATE)
    service.add(
        pb.LabelTask(
            prompt="Explain tides to a child of six.", context="The child lives by the sea.", category="open qa"
        ),
        project="demonstrations",
    )
    service.project("own-prompts", pb.TASK_KIND_DEMONSTRATE)
    service.add(pb.LabelTask(task_key="free-1"), project="own-prompts")
    return people


def _skip(person: Person, given: dict[str, Any]) -> None:
    body = {"submission_id": f"skip-{given['id']}", "reason": "I do not know enough to judge"}
    assert person.post(f"assignments/{given['id']}/skip", body).status_code == 200
