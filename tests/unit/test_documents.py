"""What is read out of Markdown documents."""

from harness.documents import anchors, commands, links, quoted, rows

TEXT = """# A title: with `code`, twice

See [there](other.md#part), [here](#a-title-with-code-twice), [far](https://example.org/x)
and ![a picture](plot.svg).

```sh
make test   # a comment
# only a comment
$ pytest -m gate4 \\
  --profile cpu
```

```python
x = "[not](a-link)"
```

| code | why |
|---|---|
| `ONE` | first, `with` code |
| `TWO` | second |
"""


def test_commands_come_without_prompts_comments_and_line_breaks() -> None:
    assert commands(TEXT) == ["make test", "pytest -m gate4    --profile cpu"]


def test_links_are_those_inside_the_project() -> None:
    assert links(TEXT) == ["other.md#part", "#a-title-with-code-twice", "plot.svg"]


def test_anchors_are_made_as_github_makes_them() -> None:
    assert anchors(TEXT) == {"a-title-with-code-twice"}


def test_rows_leave_headings_and_rules_out() -> None:
    assert rows(TEXT) == [["`ONE`", "first, `with` code"], ["`TWO`", "second"]]


def test_what_stands_in_backticks_outside_blocks() -> None:
    assert quoted(TEXT) == ["code", "ONE", "with", "TWO"]
