// An order with ties, as a list of groups, best first. Every function returns a new one.

/** Each of `count` answers on a rank of its own, in the order of the page. */
export function inPageOrder(count) {
  return Array.from({ length: count }, (_, place) => [place]);
}

/** Whether groups name each of `count` answers once. */
export function isWhole(groups, count) {
  const named = groups.flat().sort((a, b) => a - b);
  return (
    named.length === count && named.every((place, index) => place === index) && groups.every((group) => group.length)
  );
}

/** Where an answer stands: index of its group. */
export function rankOf(groups, place) {
  return groups.findIndex((group) => group.includes(place));
}

/** One step up (-1) or down (1): out of its tie, or past the next group. */
export function moved(groups, place, step) {
  const rank = rankOf(groups, place);
  if (groups[rank].length > 1) return placedAt(groups, place, step < 0 ? rank : rank + 1);
  const target = rank + step;
  if (target < 0 || target >= groups.length) return groups;
  const others = groups.filter((_, index) => index !== rank);
  return [...others.slice(0, target), [place], ...others.slice(target)];
}

/** Tied with the group above (-1) or below (1). */
export function tied(groups, place, step) {
  const rank = rankOf(groups, place);
  const target = groups[rank + step];
  return target ? joined(groups, place, target[0]) : groups;
}

/** Tied with the group of another answer. */
export function joined(groups, place, other) {
  if (groups[rankOf(groups, place)].includes(other)) return groups;
  return without(groups, place).map((group) => (group.includes(other) ? sorted([...group, place]) : group));
}

/** On a rank of its own before the group that is now the `gap`th; after all groups for their number. */
export function placedAt(groups, place, gap) {
  const before = without(groups.slice(0, gap), place);
  return [...before, [place], ...without(groups.slice(gap), place)];
}

/** Pairs of answers, the better one first, whose ratings say the contrary; null is no rating. */
export function contradictions(groups, ratings) {
  const pairs = groups.flatMap((group, rank) =>
    group.flatMap((above) =>
      groups
        .slice(rank + 1)
        .flat()
        .map((below) => [above, below]),
    ),
  );
  return pairs.filter(
    ([above, below]) => ratings[above] !== null && ratings[below] !== null && ratings[above] < ratings[below],
  );
}

/** The same order. */
export function areEqual(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

function without(groups, place) {
  return groups.map((group) => group.filter((one) => one !== place)).filter((group) => group.length);
}

function sorted(group) {
  return [...group].sort((a, b) => a - b);
}
