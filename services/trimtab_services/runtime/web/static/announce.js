// What a screen reader says aloud without that the focus moves.

/** Says a sentence when the reader is free; `isUrgent` interrupts it. */
export function announce(text, { isUrgent = false } = {}) {
  const region = document.getElementById(isUrgent ? "assertive" : "polite");
  region.textContent = "";
  // a region that gets the same text again is silent unless it was empty in between
  setTimeout(() => {
    region.textContent = text;
  }, 50);
}
