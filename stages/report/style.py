"""The style of the page: CSS in its head, with a light and a dark theme."""

# One column on a phone, contents at the side on a wide screen. Pictures have a white background, so both themes show them on
# white, slightly dimmed in the dark one.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2733; --soft: #5d6878; --line: #e3e7ed; --page: #f6f7f9; --card: #fff;
  --accent: #23648f; --train: #7d93aa; --val: #c8561f; --good: #27704a; --bad: #b02a25; }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --soft: #97a3b3; --line: #2d3642; --page: #13171d;
  --card: #1b2129; --accent: #7db8e0; --train: #7f93a9; --val: #f0884e; --good: #6cc598; --bad: #f08a84; }
  .paper { filter: brightness(.9); } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 0 1rem 4rem; }
a { color: var(--accent); }
code, pre, dt, th, caption, h4 { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .875em; overflow-wrap: anywhere; }
pre { font-size: .8125rem; margin: .5rem 0; }
header { padding: 1.5rem 0 .25rem; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0; font-size: clamp(1.4rem, 5vw, 2rem); line-height: 1.25; font-weight: 650; }
h2 { margin: 0 0 1rem; font-size: 1.375rem; font-weight: 650; }
h3 { margin: 2rem 0 .4rem; font-size: 1.0625rem; font-weight: 650; }
h4 { margin: 0 0 .25rem; font-size: .8125rem; font-weight: 600; color: var(--soft); }
p { margin: .4rem 0 .75rem; max-width: 46rem; }
section { padding: 2rem 0 .5rem; border-top: 1px solid var(--line); margin-top: 2rem; }
header + section { border: 0; margin: 0; padding-top: 1rem; }
section, article, h3 { scroll-margin-top: 3.25rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .875rem; }
nav { position: sticky; top: 0; z-index: 1; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul { display: flex; overflow-x: auto; padding: 0 .5rem; scrollbar-width: none; }
nav li ul { display: none; }
nav a { display: block; padding: .7rem .6rem; white-space: nowrap; color: var(--soft); text-decoration: none; font-size: .9375rem; }
nav a:hover { color: var(--ink); }
dl { margin: 0; }
dt { font-size: .8125rem; color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: .6rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tiles dt { font-family: inherit; line-height: 1.35; }
dt a, .charts a { color: inherit; text-decoration: underline dotted; text-underline-offset: .2em; }
dt a:hover, .charts a:hover { color: var(--accent); }
.definitions { max-width: 46rem; } .definitions dt { margin-top: .9rem; font-weight: 600; scroll-margin-top: 3.25rem; }
.definitions dt:target { color: var(--accent); }
.tiles dd { font-size: 1.5rem; font-weight: 600; line-height: 1.4; }
.tiles dd.beside { font-size: .875rem; font-weight: 400; color: var(--soft); }
.plain { list-style: none; margin: 1.25rem 0 0; padding: 0; }
.plain li { margin: .35rem 0; }
.good, .bad { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); } p.soft { font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: .6rem; align-items: start; }
.cards details[open], .cards > p { grid-column: 1 / -1; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 0 1rem; max-width: 46rem; }
summary { cursor: pointer; padding: .55rem 0; font-size: .9375rem; color: var(--soft); }
summary b { color: var(--ink); font-weight: 600; }
details[open] { padding-bottom: .75rem; }
article > details { background: none; border: 0; padding: 0; margin: -.5rem 0 .5rem; }
article > details p { font-size: .9375rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; margin: .75rem 0 1rem; }
.numbers > div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .65rem 1rem;
  max-width: 100%; }
.numbers dl { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; }
.numbers dd { font-size: 1.0625rem; font-weight: 600; }
.shown { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; margin: .75rem 0 1rem; }
.shown > * { min-width: 0; margin-top: 0; margin-bottom: 0; } .shown > p { flex-basis: 100%; }
figure { margin: 0; max-width: 100%; }
.paper { background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: .5rem;
  display: inline-block; max-width: 100%; }
.paper input { position: absolute; opacity: 0; }
.paper:has(:focus-visible) { outline: 2px solid var(--accent); } .paper:has(:checked) { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; }
:checked + img { max-width: none; }
figcaption { font-size: .875rem; color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .8125rem; font-weight: 600; padding-bottom: .2rem; }
th, td { text-align: left; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: .8125rem; font-weight: 500; color: var(--soft); }
td code { white-space: nowrap; overflow-wrap: normal; }
.n { text-align: right; }
details table { width: 100%; }
.cards table { table-layout: fixed; } .cards td:first-child { width: 52%; }
details td { white-space: normal; vertical-align: top; }
details td code { white-space: normal; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .75rem; }
.charts figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .75rem .4rem; }
.charts figcaption { line-height: 1.35; margin-bottom: .35rem; overflow-wrap: anywhere; }
.charts b { color: var(--ink); font-weight: 600; } .charts span { white-space: nowrap; font-variant-numeric: tabular-nums; }
.train { color: var(--train); } .val { color: var(--val); } .value { color: var(--accent); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg line { stroke: var(--line); } svg line.kept { stroke: var(--soft); stroke-dasharray: 2 3; }
polyline { fill: none; stroke: currentColor; stroke-width: 1.75; stroke-linejoin: round; }
.bars { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: .45rem 1rem;
  align-items: center; max-width: 46rem; }
.bars dt { font-family: inherit; font-size: .875rem; text-align: right; overflow-wrap: normal; line-height: 1.3; }
.bars dd { display: flex; align-items: center; gap: .5rem; padding-right: 3.5rem; }
.bars b { font-weight: 600; font-size: .875rem; margin-right: -3.5rem; }
.bar { display: block; flex: none; height: 1.05rem; min-width: 2px; border-radius: .2rem; background: currentColor; opacity: .85; }
@media (min-width: 40rem) { .tiles { grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: .75rem; } }
@media (min-width: 72rem) {
  body { display: grid; grid-template-columns: 12rem minmax(0, 64rem); justify-content: center; column-gap: 2rem; }
  nav { align-self: start; height: 100vh; overflow-y: auto; border: 0; padding: 2rem 0; }
  nav > ul { display: block; padding: 0; overflow: visible; }
  nav a { padding: .25rem 0; }
  nav li ul { display: block; padding-left: .9rem; }
  nav li ul a { font-size: .8125rem; padding: .1rem 0; }
  section, article, h3 { scroll-margin-top: 1rem; }
  main { margin: 0; padding-top: 1rem; }
}
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""
