// What the site adds to smalldocs.js: copying without tests, showing them, and a search for all words that are asked for
(() => {
  "use strict";
  // the code of a block as text, without the tests that are folded
  window.codeText = (code) => {
    const lines = [...code.querySelectorAll(".line")], folded = code.closest(".folded");
    if (!lines.length) return code.innerText;
    return lines.filter((o) => !folded || !o.matches(".test")).map((o) => o.textContent).join("").replace(/\n$/, "");
  };
  document.querySelectorAll(".tests-button").forEach((button) => button.addEventListener("click", () => {
    const shown = !button.parentElement.classList.toggle("folded");
    button.setAttribute("aria-expanded", shown);
  }));
  const normal = (text) => text.toLowerCase();
  // words of a question that say nothing of what is asked for
  const small = new Set("a an and are can do does for from how i in is it my of on or the to what when where with"
    .split(" "));
  const weights = [["title", 10], ["words", 8], ["section", 6], ["text", 1]];
  // how well a section of a page answers: 0 if one of the words is nowhere in it
  const score = (entry, words) => {
    let sum = 0;
    for (const word of words) {
      let best = 0;
      for (const [field, weight] of weights) {
        const text = normal(entry[field] || ""), at = text.search(new RegExp("(^|[^\\p{L}\\p{N}])" + word, "u"));
        if (at >= 0) best = Math.max(best, weight * (text === word ? 2 : 1));
        else if (text.includes(word.replace(/\\/g, ""))) best = Math.max(best, weight / 2);
      }
      if (!best) return 0;
      sum += best;
    }
    return sum + (entry.section ? 0 : .5);
  };
  // two entries of each page, then the others
  const spread = (entries) => {
    const times = {}, page = (o) => o.href.split("#")[0];
    const rest = new Set(entries.filter((o) => (times[page(o)] = (times[page(o)] || 0) + 1) > 2));
    return [...entries.filter((o) => !rest.has(o)), ...rest];
  };
  // the entries of the index that hold all words of a question, best first; those that fuse finds, if there are none
  window.searchPages = (index, fuse, question, limit) => {
    const all = normal(question).split(/[\s?]+/).filter(Boolean), telling = all.filter((o) => !small.has(o));
    const words = (telling.length ? telling : all).map((o) => o.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const found = index.map((o) => [score(o, words), o]).filter(([n]) => n).sort(([a], [b]) => b - a).map(([, o]) => o);
    return (found.length || !fuse ? spread(found) : fuse.search(question, { limit }).map((o) => o.item)).slice(0, limit);
  };
})();
