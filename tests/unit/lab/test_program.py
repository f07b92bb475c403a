"""The program that the laboratory writes; that it makes the same weights is tested with the laboratory."""

import ast
from dataclasses import replace

from editkit import EditSpec, Fact
from editkit.lab.program import program


def test_it_is_python_that_makes_the_same_spec_and_facts(facts):
    spec = EditSpec(method="alphaedit", l2=2.5, targets_from="base")
    odd = replace(facts[0], subject='"); print("', neighbours=("one\ntwo",))
    tree = ast.parse(program("a 'model'", spec, [odd, facts[1]], ["some/folder"]))
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    values = {k.arg: ast.literal_eval(k.value) for k in calls["ek.EditSpec"].keywords}
    assert EditSpec(**values) == spec
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "ek.Fact.make"]
    again = [Fact.make(**{k.arg: ast.literal_eval(k.value) for k in node.keywords}) for node in made]
    assert [replace(fact, id="") for fact in again] == [replace(fact, id="") for fact in (odd, facts[1])]
    assert ast.literal_eval(calls["ek.load_lm"].args[0]) == "a 'model'"
    assert ast.literal_eval(calls["adapters.load"].args[0]) == "some/folder"
