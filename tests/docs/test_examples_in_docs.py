"""Runs the examples in README.md and docs/, as a reader who copies them would.

Every ```python block is a program of its own: it runs in a process of its own, in an empty
directory, with warnings as errors, and must end by itself. `__name__` is not `"__main__"` there,
so that an example may close with the usual guard around `app.main()`.

A fence is marked by an HTML comment on the line before it, which no reader of the page sees:

- `<!-- not run: REASON -->` before a ```python block that is a fragment, or needs a server; it
  must still be valid Python, top-level `await` allowed;
- `<!-- run -->` before a ```bash block that is to run, at the top of the repository.

What the examples in examples/ do is tested elsewhere.
"""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import forked

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEADLINE_S = 120

FENCE = re.compile(
    r"""
    (?:^[ ]*<!--\s*(?P<mark>run|not\ run)\b:?\s*(?P<reason>.*?)\s*-->[ ]*\n)?
    ^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n
    (?P<text>.*?)
    ^(?P=indent)```[ ]*$
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"^[ ]*<!--\s*(?:run|not run)\b", re.MULTILINE)

# A run that fails for such a reason does not end the program: it is only in the log.
PROGRAMMING_ERROR = re.compile(
    r"^(?:Attribute|Import|Key|Module|Name|Type|UnboundLocal)\w*Error\b.*", re.MULTILINE
)

# Such a program may use a module of the package that it has not imported. That is found only where
# no such module is loaded.
WHOLE_PACKAGE = re.compile(r"^\s*import pyncette\b", re.MULTILINE)

# Compiled under the page's name, so that a traceback points into the page.
RUN_PYTHON = """
import sys, types
_, page, text = sys.argv
module = sys.modules["documentation"] = types.ModuleType("documentation")
exec(compile(text, page, "exec"), module.__dict__)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, with as many empty lines before its text as the page has lines."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, content: str) -> list[Block]:
    blocks = []
    for fence in FENCE.finditer(content):
        line = content.count("\n", 0, fence.start("text"))
        text = "".join(
            row.removeprefix(fence["indent"]) for row in fence["text"].splitlines(keepends=True)
        )
        blocks.append(
            Block(
                page=page,
                line=line,
                language=fence["language"],
                text="\n" * line + text,
                mark=fence["mark"],
                reason=fence["reason"] or "",
            )
        )
    return blocks


def run(block: Block, directory: Path) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    program = ["-c", RUN_PYTHON, block.page, block.text]
    options = ("-W", "error")
    if block.language == "bash":
        command, text = ["bash", "-euo", "pipefail", "-s"], block.text
    elif WHOLE_PACKAGE.search(block.text):
        command, text = [sys.executable, *options, *program], None
    else:
        return forked.run(program, directory, environment, DEADLINE_S, options, merged=True)
    return subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env=environment,
        timeout=DEADLINE_S,
        check=False,
    )


def a_page_with(example: str, language: str = "python", mark: str = "") -> str:
    return f"# Title\n\n{mark}```{language}\n{example}\n```\n"


BLOCKS = [
    block
    for page in PAGES
    for block in blocks_of(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
]
EXAMPLES = [block for block in BLOCKS if block.language == "python" or block.mark]


@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_an_example_runs_as_it_stands_or_says_why_not(block: Block, tmp_path: Path) -> None:
    if block.mark == "not run":
        assert block.language == "python", "only a python block needs a reason not to run"
        assert block.reason
        compile(block.text, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return
    result = run(block, ROOT if block.language == "bash" else tmp_path)
    assert result.returncode == 0, result.stdout
    assert not PROGRAMMING_ERROR.search(result.stdout), result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_mark_stands_right_before_an_example(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    marked = [block for block in blocks_of(page.name, content) if block.mark]
    assert len(MARK.findall(content)) == len(marked)


def test_a_failing_example_is_reported_with_its_page_and_line(tmp_path: Path) -> None:
    [block] = blocks_of("page.md", a_page_with("value = 1\nraise ValueError(value)"))
    result = run(block, tmp_path)
    assert result.returncode != 0
    assert 'File "page.md", line 5' in result.stdout


def test_a_run_with_an_error_in_its_code_is_found(tmp_path: Path) -> None:
    [block] = blocks_of(
        "page.md",
        a_page_with(
            "import asyncio\nfrom pyncette import Context, Pyncette\n"
            "app = Pyncette(url='sqlite://')\n"
            "@app.dynamic_task()\nasync def job(context: Context) -> None:\n"
            "    context.no_such_thing\n"
            "async def main() -> None:\n    async with app.create() as context:\n"
            "        await context.schedule_task(job, 'a', execute_at=context.clock.now())\n"
            "        await context.run_until_idle()\n"
            "asyncio.run(main())"
        ),
    )
    result = run(block, tmp_path)
    assert result.returncode == 0
    assert PROGRAMMING_ERROR.search(result.stdout)


def test_a_warning_fails_an_example(tmp_path: Path) -> None:
    [block] = blocks_of("page.md", a_page_with("import warnings; warnings.warn('old')"))
    assert run(block, tmp_path).returncode != 0


def test_the_main_guard_of_an_example_does_not_fire(tmp_path: Path) -> None:
    [block] = blocks_of(
        "page.md", a_page_with("if __name__ == '__main__':\n    raise SystemExit(1)")
    )
    assert run(block, tmp_path).returncode == 0


def test_a_failing_command_in_the_middle_fails_a_shell_example(tmp_path: Path) -> None:
    [block] = blocks_of("page.md", a_page_with("false\ntrue", "bash", "<!-- run -->\n"))
    assert block.mark == "run"
    assert run(block, tmp_path).returncode != 0


def test_an_indented_example_loses_its_indentation() -> None:
    [block] = blocks_of("page.md", "- item\n\n    ```python\n    if True:\n        pass\n    ```\n")
    assert block.text.lstrip("\n") == "if True:\n    pass\n"


def test_a_mark_carries_its_reason() -> None:
    mark = "<!-- not run: needs a Redis server -->\n"
    [block] = blocks_of("page.md", a_page_with("await x", mark=mark))
    assert (block.mark, block.reason) == ("not run", "needs a Redis server")
