"""The frame of a report: its style, and the script that lights up what belongs to a path. Nothing is fetched."""

STYLE = """
:root { --accent: #b3261e; --lit: #fff1b8; --edge: #0b57d0; --line: #d9d9d9; --pale: #6b6b6b; }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem 1.5rem; color: #222; background: #fff; font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .2rem 0; } .pale { color: var(--pale); }
main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.1fr); gap: 1.5rem; align-items: start; }
figure { margin: 0; position: sticky; top: 1rem; max-height: 96vh; overflow: auto; }
figure svg { width: auto; height: auto; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
.wide { overflow: auto hidden; padding-bottom: .4rem; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr[data-lit] { cursor: pointer; } tr[data-lit]:focus { outline: 2px solid var(--edge); outline-offset: -2px; }
tr.lit { background: var(--lit); } td.once { color: #1b6e2d; } td.word { font-weight: 600; }
td.dropped, td.scaled, td.twice { color: var(--accent); } td.linearized { color: #8a5a00; }
pre { margin: .4rem 0 0; overflow-x: auto; font: .82rem/1.5 ui-monospace, monospace; border: 1px solid var(--line); }
pre span { display: block; padding: 0 .6rem; min-height: 1.5em; } pre span.lit { background: var(--lit); }
math { font-size: .95rem; } mtd { text-align: left; } mtd:first-child { text-align: right; }
math .lit { background: var(--lit); outline: 1px solid var(--edge); }
svg .lit path { stroke: var(--edge) !important; stroke-width: 2.5 !important; }
svg [id^=node-].lit path { fill: var(--lit) !important; }
svg [id^=edge-].lit path:last-child:not(:first-child) { fill: var(--edge) !important; }
@media (max-width: 900px) { main { display: block; }
  figure { position: static; max-height: none; } body { padding: .7rem; } }
"""

SCRIPT = """
const rows = [...document.querySelectorAll("tr[data-lit]")];
let kept = null;

function light(row) {
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (!row) return;
  row.classList.add("lit");
  for (const part of document.querySelectorAll(row.dataset.lit)) part.classList.add("lit");
}

function keep(row) {
  kept = row === kept ? null : row;
  history.replaceState(null, "", kept ? "#" + kept.id : "#");
  light(kept);
}

for (const row of rows) {
  row.addEventListener("mouseenter", () => light(row));
  row.addEventListener("mouseleave", () => light(kept));
  row.addEventListener("focus", () => light(row));
  row.addEventListener("blur", () => light(kept));
  row.addEventListener("click", () => keep(row));
  row.addEventListener("keydown", event => { if (event.key === "Enter") keep(row); });
}
light(kept = rows.find(row => "#" + row.id === location.hash) ?? null);
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{head}
<main>
<figure>
{picture}
</figure>
<div>
{parts}
</div>
</main>
<script>{script}</script>
</body>
</html>
"""
