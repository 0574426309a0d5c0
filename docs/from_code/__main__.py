"""Write what is generated into the pages: ``make pages``."""

from __future__ import annotations

from from_code.pages import ROOT, generated

if __name__ == "__main__":
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"Wrote {path.relative_to(ROOT)}")
