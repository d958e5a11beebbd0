// Keys that work anywhere on the page. Single keys can be turned off, and do nothing while a text is typed.

const SETTING = "trimtab-labeling-single-keys";

export function shortcutsAreOn() {
  return localStorage.getItem(SETTING) !== "off";
}

export function setShortcutsOn(isOn) {
  localStorage.setItem(SETTING, isOn ? "on" : "off");
}

/** Whether a key event is a single key that the page may take. */
export function isSingleKey(event) {
  if (!shortcutsAreOn() || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return false;
  if (document.querySelector("dialog[open]")) return false;
  return !event.target.closest?.("textarea, select, input:not([type=radio]):not([type=checkbox]), [contenteditable]");
}
