"""Turns a terminal's screen, as `tmux capture-pane -e -p` prints it, into an SVG picture."""

import html
import re
import sys

CELL, LINE, PAD = 8.4, 18, 14
COLOURS = {30: "#39424e", 31: "#ff8178", 32: "#4cc79a", 33: "#e5a94b", 34: "#7aa7ff", 35: "#c79bf2", 36: "#3ecdb9", 37: "#aeb8c4", 39: "#e4e9ef",
           90: "#75818f", 91: "#ff8178", 92: "#4cc79a", 93: "#e5a94b", 94: "#7aa7ff", 95: "#c79bf2", 96: "#3ecdb9", 97: "#ffffff"}
# The sixteen colours, where they are asked for by number.
NUMBERED = [30, 31, 32, 33, 34, 35, 36, 37, 90, 91, 92, 93, 94, 95, 96, 97]

colour, bold, rows = 39, False, []
for line in sys.stdin.read().split("\n"):
    spans, column = [], 0
    for codes, text in re.findall(r"(?:\x1b\[([0-9;]*)m)|([^\x1b]+)", line):
        if text:
            spans.append((column, text, colour, bold))
            column += len(text)
            continue
        numbers = [int(code or 0) for code in codes.split(";")]
        while numbers:
            code = numbers.pop(0)
            if code == 38 and numbers[:1] == [5]:
                colour = NUMBERED[numbers[1]] if numbers[1] < 16 else 39
                numbers = numbers[2:]
            elif code in COLOURS:
                colour = code
            elif code == 0:
                colour, bold = 39, False
            elif code in (1, 22):
                bold = code == 1
    rows.append(spans)
while rows and not any(text.strip() for _, text, _, _ in rows[-1]):
    rows.pop()

columns = max((start + len(text) for row in rows for start, text, _, _ in row), default=80)
width, height = columns * CELL + 2 * PAD, len(rows) * LINE + 2 * PAD
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">')
print('<rect width="100%" height="100%" rx="10" fill="#0e1319"/>')
print('<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="14">')
for number, row in enumerate(rows):
    for start, text, paint, strong in row:
        weight = ' font-weight="bold"' if strong else ""
        # Each word, or words with one space between, has a length, so that columns stand whatever the font is.
        for words in re.finditer(r"\S+(?: \S+)*", text):
            x, length = PAD + (start + words.start()) * CELL, len(words[0]) * CELL
            print(f'<text x="{x:.1f}" y="{PAD + number * LINE + 13}" textLength="{length:.1f}" fill="{COLOURS[paint]}"{weight}>'
                  f'{html.escape(words[0])}</text>')
print("</g>\n</svg>")
