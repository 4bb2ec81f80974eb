"""Writes docs/six_clicks.jpg, the README's stills of the editor, from what a browser test leaves.

CLIPLOC_TEST_WEB=1 CLIPLOC_SCREENSHOTS=shots pytest tests/web/test_unknown_thing.py
python tools/readme_stills.py shots
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUT = Path(__file__).parents[1] / "docs/six_clicks.jpg"
TITLES = ("1  a name that no model knows", "2  draw it in three pictures", "3  drafts in the other 37")
WIDTH, GAP, HEAD = 620, 14, 46  # pixels; shown at half of them
FONT = ImageFont.load_default(26)

stills = [Image.open(Path(sys.argv[1]) / f"six-clicks-{number}.jpg") for number in (1, 2, 3)]
small = [still.resize((WIDTH, round(still.height * WIDTH / still.width)), Image.Resampling.LANCZOS) for still in stills]
sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, HEAD + small[0].height), "white")
for column, (title, still) in enumerate(zip(TITLES, small, strict=True)):
    left = column * (WIDTH + GAP)
    ImageDraw.Draw(sheet).text((left, 6), title, (17, 17, 17), FONT)
    sheet.paste(still, (left, HEAD))
sheet.save(OUT, quality=78, optimize=True, progressive=True)
