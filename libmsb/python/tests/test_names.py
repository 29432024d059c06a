"""Every public name, parameter and default of microsandbox 0.5.5."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import unittest
from typing import Any

import microsandbox
import microsandbox.sync

from .peer import fixture

NAMES = fixture("names.json")


def parameters(text: str) -> dict[str, tuple[str, Any]]:
    """Returns the kind and default of each parameter of a signature."""
    arguments = ast.parse(f"def f({text}): ...").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    found: dict[str, tuple[str, Any]] = {}
    names = arguments.args.args
    defaults = [None] * (len(names) - len(arguments.args.defaults)) + [*arguments.args.defaults]
    for argument, default in zip(names, defaults):
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        found[argument.arg] = ("positional", value)
    for argument, keyword in zip(arguments.args.kwonlyargs, arguments.args.kw_defaults):
        value = inspect.Parameter.empty if keyword is None else ast.literal_eval(keyword)
        found[argument.arg] = ("keyword", value)
    return found


class NameTests(unittest.TestCase):
    def check(self, module: Any, owner: str, member: str, expected: str | None) -> None:
        holder: Any = getattr(module, owner) if owner else module
        fields = {field.name for field in dataclasses.fields(holder)} if (
            dataclasses.is_dataclass(holder)
        ) else set[str]()
        member = self.spelled(module, member)
        known = hasattr(holder, member) or member in fields
        known = known or member in self.attributes(holder)
        self.assertTrue(known, f"{owner}.{member} is missing")
        if expected is None or expected.startswith("name, **"):
            return
        real = inspect.signature(getattr(holder, member)).parameters
        for name, (kind, default) in parameters(expected).items():
            self.assertIn(name, real, f"{owner}.{member}({name})")
            self.assertEqual(real[name].default, default, f"{owner}.{member}({name})")
            if kind == "positional":
                self.assertNotEqual(real[name].kind, inspect.Parameter.KEYWORD_ONLY, name)
        extra = [
            name
            for name, parameter in real.items()
            if name not in parameters(expected)
            and name != "self"
            and parameter.default is inspect.Parameter.empty
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        self.assertEqual(extra, [], f"{owner}.{member} needs more")

    def is_there(self, name: str) -> bool:
        """Returns whether a member is there with its parameters and defaults."""
        owner, _, member = name.rpartition(".")
        try:
            self.check(microsandbox, owner, member, NAMES["members"][owner][member])
        except AssertionError:
            return False
        return True

    @staticmethod
    def spelled(module: Any, member: str) -> str:
        """Returns the name of a special method in the face without `await`."""
        if module is microsandbox.sync:
            return {
                "__aenter__": "__enter__",
                "__aexit__": "__exit__",
                "__aiter__": "__iter__",
                "__anext__": "__next__",
            }.get(member, member)
        return member

    @staticmethod
    def attributes(holder: Any) -> set[str]:
        """Returns attributes that `__init__` sets."""
        text = inspect.getsource(holder) if inspect.isclass(holder) else ""
        return {word.split("self.")[1].split()[0] for word in text.splitlines() if "self." in word
                and "=" in word and word.strip().startswith("self.")}

    def test_every_name_parameter_and_default_is_there(self) -> None:
        for module in (microsandbox, microsandbox.sync):
            for owner, members in NAMES["members"].items():
                for member, expected in members.items():
                    with self.subTest(f"{module.__name__}: {owner}.{member}"):
                        self.check(module, owner, member, expected)
            for name in NAMES["names"]:
                self.assertTrue(hasattr(module, name), name)

    def test_every_word_of_an_enumeration_is_there(self) -> None:
        for name, words in NAMES["words"].items():
            known = {member.value for member in getattr(microsandbox, name)}
            self.assertEqual(set(words) - known, set(), name)

    def test_every_error_has_its_code(self) -> None:
        for name, code in NAMES["errors"].items():
            error = getattr(microsandbox, name)
            self.assertTrue(issubclass(error, microsandbox.MicrosandboxError))
            self.assertEqual(error.code, code)

    def test_the_verdicts_name_members_and_are_counted(self) -> None:
        every = {
            f"{owner}.{member}".lstrip(".")
            for owner, members in NAMES["members"].items()
            for member in members
        }
        differ, refused = set(NAMES["differs"]), set(NAMES["refused"])
        self.assertEqual((differ | refused) - every, set())
        self.assertEqual(differ & refused, set())
        missing = {name for name in every if not self.is_there(name)}
        works = len(every - differ - refused - missing)
        print(f"\nnames: {len(every)} members: {works} work, {len(differ)} differ, "
              f"{len(refused)} are refused, {len(missing)} are missing")
        self.assertEqual(missing, set())
        self.assertGreaterEqual(works, 235)

    def test_the_keywords_of_a_pull_are_those_of_create(self) -> None:
        create = set(inspect.signature(microsandbox.Sandbox.create).parameters) - {"name"}
        self.assertEqual(set(microsandbox.CreateOptions.__annotations__), create)

    def test_the_face_without_await_is_up_to_date(self) -> None:
        import subprocess
        import sys
        from pathlib import Path

        script = Path(__file__).resolve().parents[1] / "make-sync"
        subprocess.run([sys.executable, str(script), "--check"], check=True)


if __name__ == "__main__":
    unittest.main()
