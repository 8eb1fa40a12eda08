"Prints how dense the modules are: syntax-tree nodes per line of a function's body (docstring, comments and blank lines left out)."

import ast
import statistics
from pathlib import Path

root = Path(__file__).parents[1] / 'disent_nb'


def function_density(function, lines):
    "Nodes per line of one function; None if it has nothing but a docstring"
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return None
    nodes = sum(1 for statement in body for _ in ast.walk(statement))
    text = [line.strip() for line in lines[body[0].lineno - 1 : body[-1].end_lineno]]
    return nodes / sum(1 for line in text if line and not line.startswith('#'))


def density(path):
    "`{name: nodes per line}` of the functions of a module"
    text = path.read_text(encoding='utf-8')
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            value = function_density(node, text.split('\n'))
            if value is not None:
                found[f'{node.name}:{node.lineno}'] = value
    return found


def densities():
    "`{module: {function: nodes per line}}` of the package"
    modules = [p for p in sorted(root.rglob('*.py')) if p.name != '_modidx.py']
    return {str(p.relative_to(root)): found for p in modules if (found := density(p))}


if __name__ == '__main__':
    table = densities()
    for module, found in sorted(table.items(), key=lambda m: -statistics.median(m[1].values())):
        worst = ', '.join(f'{k} {v:.0f}' for k, v in sorted(found.items(), key=lambda p: -p[1])[:6] if v > 22)
        print(f'{statistics.median(found.values()):5.1f}  {module:<40} {worst}')
    print('all:', round(statistics.median(v for found in table.values() for v in found.values()), 1))
