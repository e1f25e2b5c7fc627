"""The corpus of small templates for tests/oracle/make_jinja_golden.py: (template, variables)."""

D = {"b": 2, "A": 1, "c": None}
ITEMS = [{"n": "x", "v": 3, "on": True}, {"n": "y", "v": 1, "on": False}, {"n": "Z", "v": 2}]
U = "Straße ÉCOLE ǆ ﬁ İ Ὀδυσσεύς ΟΔΟΣ"


def expr(*sources, **variables):
    return [("{{ " + s + " }}", variables) for s in sources]


SNIPPETS = []
add = SNIPPETS.extend

# ---- values and printing
add(expr("1", "-7", "1.0", "1.5e300", "1e16", "1e15", "123456789012345680.0", "0.0001", "0.00001", "-0.0", "1e-7", "0.1 + 0.2", "1/3",
         "100.0", "2.5e-5", "1_000", "0x1F", "0o17", "0b101", "1.5_5", "9223372036854775807", "-9223372036854775807"))
add(expr("true", "True", "none", "None", "[]", "{}", "()", "(1,)", "(1, 2)", "[1, 'a', none, 1.5, true]", "{'a': 1, 'b': [1, {'c': ()}]}",
         "'it\\'s'", "['it\\'s']", "['say \"hi\"']", "['both \\' and \"']", "['tab\\tnl\\nbs\\\\']", "['\\x00\\x1f\\x7f']", "['é\\u200b\\U0001F600']",
         "'a' 'b' \"c\"", "'\\u00e9\\x41\\101\\q'", "{1: 'a', 1.5: 'b', none: 'c', true: 'd'}", "{'a': 1, 'a': 2}", "[undefined_name]"))
add(expr("s", "[s]", "s|length", "s[1]", "s[-1]", "s[::-1]", "s[1:4]", "s[::2]", "s|upper", "s|lower", "s|title", "s|capitalize", "s.title()",
         "s.swapcase()", "s|list", "s|first", "s|last", "s|reverse", s=U))
add(expr("a", "b", "c", "d", "[a, b, c, d]", a=1.0, b=-3, c=1e22, d=True))

# ---- arithmetic
add(expr("7 // 2", "-7 // 2", "7 // -2", "7 % 3", "-7 % 3", "7 % -3", "7.5 // 2", "-7.5 % 2", "2 ** 10", "2 ** -1", "-2 ** 2", "2 ** 3 ** 2",
         "6 / 4", "6 / 3", "1 + 2 * 3", "(1 + 2) * 3", "1 - 1.0", "true + 1", "true / 2", "'ab' * 3", "3 * 'ab'", "'ab' * -1", "[1] * 3", "[1] + [2]",
         "(1,) + (2,)", "'a' + 'b'", "-'3'|int", "+5", "--5", "not 0", "not not 'x'", "7.0 // 0.5", "1 ~ 2 ~ 'x' ~ none", "1 + 2 ~ 3", "5 % 0",
         "1 / 0", "1 // 0", "1.0 / 0", "'a' + 1", "1 + 'a'", "[1] + 'a'", "none + 1", "'a' - 'b'", "{} + {}", "nope + 1", "1 - nope", "-nope",
         "'x' * 'y'", "-'a'", "0.1 + 0.7", "1e308 * 10", "2.0 ** 0.5", "10 ** 18"))

# ---- comparison and logic
add(expr("1 < 2 < 3", "1 < 3 < 2", "3 > 2 >= 2", "1 == 1.0", "true == 1", "'a' < 'b'", "'a' < 'B'", "[1, 2] < [1, 3]", "(1, 2) == (1, 2)", "[1] == (1,)",
         "{'a': 1} == {'a': 1.0}", "{'a': 1, 'b': 2} == {'b': 2, 'a': 1}", "none == none", "none == false", "'1' == 1", "1 != 2", "1 in [1, 2]",
         "3 not in [1, 2]", "'b' in 'abc'", "'' in 'abc'", "'a' in {'a': 1}", "1 in (1,)", "2 in range(3)", "nope in [1]", "1 in nope", "nope == nope2",
         "nope == none", "1 and 2", "0 and nope.x", "0 or 'x'", "'' or none or 'last'", "1 or nope.x", "not nope", "1 if true else 2",
         "1 if false else 2", "1 if false", "'a' if nope else 'b' if true else 'c'", "[1 if false]", "1 < 'a'", "none < 1", "nope < 1", "[] < 1", "{} < {}",
         "1 in 5", "5 in 'abc'", "[1] in 'abc'", "1 == 1 == 1", "(1 == 1) == true", "1 if 0 else 2 if 0 else 3", "1 is number and 'a' is string"))

# ---- access
add(expr("d.b", "d['b']", "d.zz", "d.zz.y", "d['zz']['y']", "d[0]", "d.items()|list", "d.keys()|list", "d.values()|list", "d.get('b')", "d.get('zz')",
         "d.get('zz', 5)", "d.get('c', 5)", "d['get']('b')", "d.items", "d|length", "d.c.x", "d.__class__", "d['__class__']", "d.__class__.__name__",
         "d.pop('b')", "d.update({})", "d.clear", "d.copy()", "d.keys()", "d.values()", "d.items()", "d[[1]]", "d[{}]", "d[1:2]", d=D))
add(expr("l[0]", "l[-1]", "l[5]", "l[5].x", "l['a']", "l.a", "l.0", "l[1:]", "l[:-1]", "l[::-1]", "l[::2]", "l[3:1:-1]", "l[-100:100]", "l[10:]", "l[2:1]", "l[none:2]",
         "l[::0]", "l['a':]", "l.append(1)", "l.index(3)", "l.count(2)", "l.index(99)", "l.pop()", "l.sort", "l[true]", "l[1.0]", "l[nope]", "l|length",
         "l.__len__", "l[:2] + l[-2:]", l=[1, 2, 3, 4, 5]))
add(expr("'abc'.foo", "'abc'.upper", "5 .x", "none.x", "none[0]", "none['x']", "nope.x", "nope[0]", "nope()", "'abc'()", "(5)[0]", "'abc'[0]", "'abc'[10]",
         "'abc'['upper']()", "nope.x.y", "[].x.y", "'abc'[1:2:3]", "nope[1:]", "range(10)[2:5]|list", "range(10)[-1]", "range(5)"))
add([("{{ m['items'] is mapping }}|{{ m['items'] }}|{{ n['items'] is mapping }}|{{ n['items'] is defined }}", {"m": {"items": {"a": 1}}, "n": {"x": 1}}),
     ("{{ m.items is mapping }}{{ m.keys is callable }}", {"m": {"items": 1}})])

add(expr("x[1:]", "y[1:]", "z[1:]", x=None, y=5, z={"a": 1}))

# ---- strings' methods
add(expr("' a b  c '.split()", "'a,b,,c'.split(',')", "'a,b,c'.split(',', 1)", "' a b c '.split(none, 1)", "'abc'.split('')", "''.split()", "''.split(',')",
         "'a b c'.rsplit(' ', 1)", "' a b c '.rsplit(none, 1)", "'a--b--c'.rsplit('--')", "'aXbXc'.split('X')[-1]", "'  x '.strip()", "'xxaxx'.strip('x')",
         "'abcba'.lstrip('ab')", "'abcba'.rstrip('ab')", "'\\n x\\n'.lstrip('\\n')", "'\\u00a0x\\u3000'.strip()", "'abc'.startswith('ab')", "'abc'.endswith(('x', 'c'))",
         "'abc'.startswith('b', 1)", "'abc'.startswith(1)", "'abc'.replace('b', 'xx')", "'aaa'.replace('a', 'b', 2)", "'abc'.replace('', '-')", "'abc'.replace('', '-', 2)",
         "''.replace('', 'x')", "'-'.join(['a', 'b'])", "'-'.join('abc')", "'-'.join([1])", "'-'.join(5)", "'abcabc'.find('c')", "'abcabc'.rfind('c')", "'abc'.find('z')", "'abc'.index('z')",
         "'ééa'.find('a')", "'abcabc'.count('bc')", "'aaa'.count('aa')", "'abc'.count('')", "'a b'.title()", "\"they're bill's\".title()", "\"they're bill's\"|title", "'hello wORLD'.capitalize()",
         "'a-b (c) <d> [e]'|title", "'Ab'.isalpha()", "'12'.isdigit()", "'1²'.isdigit()", "'1²'.isdecimal()", "'a1'.isalnum()", "''.isalpha()", "' \\n'.isspace()",
         "'abc'.islower()", "'ABC1'.isupper()", "'Abc Def'.istitle()", "'x'.center(6)", "'x'.center(5, '*')", "'xy'.center(5, '*')", "'x'.ljust(3, '.')", "'x'.rjust(3)", "'-5'.zfill(4)", "'5'.zfill(3)",
         "'prefix-x'.removeprefix('prefix-')", "'x.py'.removesuffix('.py')", "'a=b=c'.partition('=')", "'a=b=c'.rpartition('=')", "'abc'.partition('x')", "'a\\nb\\r\\nc\\n'.splitlines()",
         "'a\\nb\\n'.splitlines(true)", "'abc'.upper().lower()", "'ﬀ'.upper()", "'ΑΣ'.lower()", "'ΑΣΑ Σ'.lower()", "'x'.nosuch()", "'a'.upper(1)", "'a,b'.split(sep=',')",
         "'a,b,c'.split(',', maxsplit=1)", "'%s-%d-%5.2f|%-5s|%05d' % ('a', 3, 2.5, 'x', -42)", "'%s' % 5", "'%s %s' % (1,)", "'%d' % 'a'", "'%%'  % ()", "'%x %o %X %#x' % (255, 8, 255, 255)",
         "'%(a)s' % {'a': 1}", "'%r' % ('x',)", "'%c%c' % ('a', 98)", "'a' % 1", "'%5s|%.2s' % ('ab', 'abcd')", "'{} {}'.format(1, 'a')", "'{1} {0}'.format(1, 'a')", "'{x} {{}}'.format(x=3)",
         "'{0[a]} {0[b]}'.format({'a': 1, 'b': 2})", "'{:>5}|{:<5}|{:^5}|{:*^5}'.format('a', 'b', 'c', 'd')", "'{:.2f} {:5d} {:05d} {:+d}'.format(3.14159, 42, 42, 7)", "'{:,}'.format(1234567)",
         "'{!r}'.format('x')", "'{'.format()", "'{}'.format()", "'{:.3}'.format('abcdef')", "'{:x} {:#b}'.format(255, 5)", "'{:.1%}'.format(0.256)", "'{} {}'.format(1.0, none)"))

# ---- filters
add(expr("' x '|trim", "'xxaxx'|trim('x')", "5|trim", "nope|trim", "none|trim", "[1]|trim", "'abc'|length", "nope|length", "5|length", "none|length", "'Abc'|upper|lower", "nope|upper", "5|upper",
         "nope|default('d')", "''|default('d')", "''|default('d', true)", "none|default('d')", "none|d('d', boolean=true)", "nope|d", "nope|default", "[1, 2]|first", "[]|first", "[]|last", "[1, 2]|last",
         "5|first", "'abc'|first", "{'a': 1}|first", "range(3)|last", "'abc'|list", "{'a': 1, 'b': 2}|list", "nope|list", "5|list", "[3, 1, 2]|sort", "[3, 1, 2]|sort(reverse=true)", "['b', 'A', 'c']|sort",
         "['b', 'A', 'c']|sort(case_sensitive=true)", "[1, 'a']|sort", "[1.5, 1, true]|sort", "'cab'|sort", "['a', 'A', 'b']|unique|list", "[1, 1.0, true, 2]|unique|list", "[[1]]|unique|list",
         "[1, 2, 3]|sum", "[]|sum", "['a']|sum", "[1, 2]|max", "[]|max", "['b', 'A']|min", "['b', 'A']|min(case_sensitive=true)", "[1, 2, 3]|reverse|list", "[1, 2]|reverse", "'abc'|reverse", "5|reverse",
         "[1, none, 'a']|join(', ')", "[1, 2]|join", "nope|join('x')", "'abc'|join('-')", "5|join", "'a b c'|replace(' ', '')", "'aaa'|replace('a', 'b', 1)", "5|replace(5, 6)", "'5'|int", "'5.7'|int", "'x'|int", "'x'|int(7)",
         "'0x1f'|int(0, 16)", "'ff'|int(base=16)", "' 5 '|int", "'1_000'|int", "5.9|int", "-5.9|int", "none|int", "[]|int(3)", "nope|int", "'5.5'|float", "'x'|float", "'x'|float(1.5)", "'inf'|float", "'nan'|float",
         "'1e3'|float", "5|float", "none|float", "nope|float", "5|string + 'x'", "nope|string", "[1]|string", "2.5|round", "3.5|round", "2.675|round(2)", "1234.567|round(-2)", "5|round", "5|round(1)", "2.1|round(0, 'ceil')",
         "2.9|round(0, 'floor')", "2.25|round(1)", "15|round(-1)", "25|round(-1)", "'a'|round", "2.5|round(method='x')", "-3|abs", "-3.5|abs", "'a'|abs", "true|abs", "'a'|capitalize", "'a b'|title", "'x'|center(5)",
         "'<a href=\"x\">&\\''|escape", "'<'|e|e", "'<'|safe|e", "('<b>'|safe).swapcase()|e", "('<b>'|safe).title()|e", "'<'|safe + '<'", "'<'|e ~ '<'", "'<'|forceescape", "['<'|safe]", "'a b/c?é'|urlencode", "{'a b': 'c&d', 'e': 1}|urlencode", "'a b_c-d'|wordcount",
         "'abc def ghi'|truncate(8)", "'abc def ghi jkl mno'|truncate(9)", "'abc def ghi jkl mno'|truncate(9, true)", "'abc def ghi jkl'|truncate(9, leeway=0, end='~')", "'%s=%s'|format('a', 1)", "'%(x)s'|format(x=3)",
         "[1, 2, 3, 4, 5]|batch(2)|list", "[1, 2, 3]|batch(2, 'x')|list", "[1, 2, 3, 4, 5]|slice(3)|list", "[1, 2, 3, 4]|slice(3, 'x')|list", "{'b': 1}|items|list", "nope|items|list", "[1]|items|list", "5|nosuch", "'x'|upper(1)",
         "'x'|trim(1, 2)", "'x'|default(nosuch=1)", "'a'|attr('upper')", "{'a': 1}|attr('a')", "{'a': 1}|attr('keys')()|list", "'a\\nb\\n\\nc'|indent", "'a\\nb\\n\\nc'|indent(2, true, true)", "'a\\nb\\n'|indent(2)",
         "'a\\nb'|indent('> ', first=true)", "''|indent(2, true)", "5|indent", "[0, 1, '', 'a']|select|list", "[0, 1, '', 'a']|reject|list", "[1, 2, 3, 4]|select('odd')|list", "[1, 2, 3, 4]|reject('gt', 2)|list",
         "[1, 'a', none]|select('string')|list", "[1, 2]|select('nosuch')|list", "['a', 'b']|map('upper')|list", "['a', 'b']|map('upper')|join('-')", "['a']|map('nosuch')|list", "[1]|map|list", "nope|map('upper')|list", "['a,b', 'c']|map('replace', ',', '-')|list",
         "['1', '2']|map('int')|sum", "[[1, 2], [3]]|map('length')|list", "[[1, 2], [3]]|map('first')|list", "[1, 2]|map('string')|map('center', 3)|join('|')", "[3, 1]|map('upper')"))
add(expr("i|map(attribute='n')|list", "i|map(attribute='q')|list", "i|map(attribute='q', default='-')|list", "i|map(attribute='on', default=0)|list", "i|selectattr('on')|map(attribute='n')|list", "i|rejectattr('on')|map(attribute='n')|list",
         "i|selectattr('v', 'gt', 1)|map(attribute='n')|join(',')", "i|selectattr('n', 'equalto', 'x')|list|length", "i|selectattr('n', 'in', ['x', 'Z'])|list|length", "i|selectattr('on', 'defined')|list|length", "i|selectattr|list",
         "i|sort(attribute='v')|map(attribute='n')|list", "i|sort(attribute='n')|map(attribute='n')|list", "i|sort(attribute='n', case_sensitive=true)|map(attribute='n')|list", "i|sum(attribute='v')", "i|max(attribute='v')", "i|min(attribute='n')",
         "i|join(', ', attribute='n')", "i|groupby('on', default=false)|list", "i|groupby('n')|map(attribute='grouper')|list", "i|groupby('n')|map('last')|list|length", "i|unique(attribute='v')|list|length", "i|sort(attribute='v,n', reverse=true)|map(attribute='n')|list",
         "i|sort(attribute='on')|length", "i|map(attribute='n')|map('lower')|sort|join", "i[0]|items|list", "i|first|dictsort", "(i|last).n", "i|length > 2", i=ITEMS))
add(expr("d|dictsort", "d|dictsort(true)", "d|dictsort(by='value')", "d|dictsort(reverse=true)", "d|dictsort(by='x')", "nope|dictsort", "[1]|dictsort", "{1: 2, 'a': 3}|dictsort", "{'é': 1, 'Z': 2, 'z': 3, 'e': 4}|dictsort", d=D))
add(expr("x|tojson", "x|tojson(indent=2)", "x|tojson(indent=0)", "x|tojson(ensure_ascii=true)", "x|tojson(separators=(',', ':'))", "x|tojson(sort_keys=true)", "x|tojson(indent=1, separators=(',', ': '))", "x|tojson(indent='\\t')", "x|tojson(true)", "x.k|tojson|length",
         x={"k": "é\"\\/\n\t\x01\x7f<>&'😀", "z": [1, 2.5, None, True, [], {}, [[1]]], "a": {"b": {"c": []}}, "f": 1e100, "e": ""}))
add(expr("{1: 'a', none: 2, true: 3, 1.5: 4}|tojson", "(1, 2)|tojson", "nope|tojson", "range(3)|tojson", "'a'|tojson|upper", "[nope]|tojson", "{(1,2): 3}|tojson", "1e16|tojson", "'nan'|float|tojson", "'-inf'|float|tojson", "[1,2]|map('string')|tojson"))

# ---- tests
add(expr(*[f"{v} is {t}" for v in ("1", "1.5", "true", "none", "'a'", "[]", "(1,)", "{}", "nope", "range(2)", "[1]|map('upper')")
           for t in ("defined", "none", "string", "number", "mapping", "sequence", "iterable", "boolean", "integer", "float", "true", "false", "callable")]))
add(expr("3 is odd", "4 is even", "4 is odd", "'a' is odd", "nope is even", "9 is divisibleby 3", "9 is divisibleby(4)", "1 is eq 1", "1 is ne 2", "1 is lt 2", "2 is ge(2)", "1 is sameas true", "none is sameas none", "'a' is in 'abc'", "1 is in [1]", "1 is not in [2]",
         "1 is not none", "nope is not defined", "'ABC' is upper", "'abc' is lower", "'a' is nosuch", "'upper' is filter", "'odd' is test", "1 is eq", "1 is odd is even", "x is defined and x", "not x is defined", "1 is eq 1 and 2 is eq 2", "3 is odd if true else 5",
         "'a' is string or nope.x", "'<'|e is escaped", "d.x is defined", "d.a is defined", "d.a.b is defined", "2 in [1,2] is true", d={"a": 1}))

# ---- statements
T = lambda source, **variables: SNIPPETS.append((source, variables))
T("{% for x in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}")
T("{% for x in 'abc' %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }},{% endfor %}")
T("{% for x in [1,2,3,4] if x is odd %}{{ x }}/{{ loop.length }}{% if not loop.last %},{% endif %}{% else %}none{% endfor %}")
T("{% for x in [] %}a{% else %}empty{% endfor %}{% for x in nope %}a{% else %}undef{% endfor %}")
T("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}", d=D)
T("{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}", d=D)
T("{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}")
T("{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}")
T("{% for a, b in [(1,)] %}{{ a }}{% endfor %}")
T("{% for a, b in [5] %}{{ a }}{% endfor %}")
T("{% for x in 5 %}{% endfor %}")
T("{% for x in none %}{% endfor %}")
T("{% for x in range(5) %}{% if x == 3 %}{% break %}{% endif %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}")
T("{% for x in range(3) %}{% for y in range(3) %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}")
T("{% for x in range(2) %}{% for y in [] %}{% else %}{% continue %}{% endfor %}never{% endfor %}ok")
T("{% for x in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x // 2) }}{{ loop.depth }}{% endfor %}")
T("{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}")
T("{% set ns = namespace(x=1, y='a') %}{% for i in [1,2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z is defined }}{{ ns['x'] }}")
T("{% set ns = namespace({'a': 1}, b=2) %}{{ ns }}")
T("{% set ns = {} %}{% set ns.x = 1 %}")
T("{% set nope.x = 1 %}")
T("{% if false %}{% set x = 1 %}{% endif %}[{{ x }}]{% if true %}{% set x = 2 %}{% endif %}[{{ x }}]")
T("{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}{% set u = (3,) %}{{ u }}")
T("{% set x %}a{{ 1 }}b{% endset %}{{ x|upper }}{{ x is string }}")
T("{% set x | upper | trim %} abc {% endset %}[{{ x }}]")
T("{% set y = 1 %}{% set x %}{% set y = 2 %}{{ y }}{% endset %}{{ x }}{{ y }}")
T("{% if a == 1 %}one{% elif a == 2 %}two{% elif a %}some{% else %}none{% endif %}", a=2)
T("{% if a == 1 %}one{% elif a == 2 %}two{% elif a %}some{% else %}none{% endif %}", a=0)
T("{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(1, c=5) }}|{{ f(b=1, a=2) }}|{{ f() }}")
T("{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}")
T("{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}")
T("{% macro f(a) %}{{ a }}{% endmacro %}{{ f(z=2) }}")
T("{% macro f(a) %}{{ a.x }}{% endmacro %}{{ f() }}")
T("{% macro f(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, k=4) }}")
T("{% macro f(n) %}{{ n }}{% if n > 0 %},{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}")
T("{% macro outer(x) %}{% macro inner(y) %}{{ x }}{{ y }}{% endmacro %}{{ inner(2) }}{% endmacro %}{{ outer(1) }}")
T("{% macro g() %}{{ f(1) }}{% endmacro %}{% macro f(x) %}f{{ x }}{% endmacro %}{{ g() }}")
T("{% macro f() %}{{ v }}{% endmacro %}{% set v = 1 %}{{ f() }}{% set v = 2 %}{{ f() }}{% for v in [3] %}{{ f() }}{% endfor %}")
T("{% macro f() %}{% set v = 9 %}{{ v }}{% endmacro %}{% set v = 1 %}{{ f() }}{{ v }}")
T("{% macro f(l) %}{% for x in l %}{% if x is iterable %}[{{ f(x) }}]{% else %}{{ x }}{% endif %}{% endfor %}{% endmacro %}{{ f([1, [2, [3]]]) }}")
T("{% macro f() %}x{% endmacro %}{{ f.name }}{{ f() is string }}{{ (f() ~ 'y')|upper }}{{ f()|length }}")
T("{% macro f(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call f(1) %}body{% endcall %}")
T("{% macro f(x) %}{{ caller(x, 2) }}{% endmacro %}{% call(a, b) f(1) %}{{ a }}{{ b }}{% endcall %}")
T("{% macro f(x) %}{{ x }}{% endmacro %}{% call f(1) %}body{% endcall %}")
T("{% filter upper %}a{{ 'b' }}{% endfilter %}{% filter replace('a', 'b')|trim %} aXa {% endfilter %}")
T("{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}{{ a }}{{ c }}")
T("{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}")
T("{% if false %}{{ 1|nosuch }}{{ 1 is nosuch }}{% else %}ok{% endif %}")
T("{% if true %}{{ 1|nosuch }}{% endif %}")
T("{% generation %}a{{ 1 }}{% endgeneration %}b")
T("{% print 1 + 2 %}")
T("{% raw %}{{ x }}{% if %}{% endraw %}!")
T("a {%- raw -%} {{ x }} {%- endraw -%} b")
T("{# comment {{ x }} #}a{#- b -#} c")
T("{% for i in [1,2] recursive %}{{ i }}{% endfor %}")
T("{% for i in t recursive %}{{ i.n }}{% if i.c %}({{ loop(i.c) }}){% endif %}{{ loop.depth }}{% endfor %}", t=[{"n": 1, "c": [{"n": 2}, {"n": 3, "c": [{"n": 4}]}]}])
T("{% for i in [1] %}{{ loop([2]) }}{% endfor %}")
T("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner(',') %}{{ j() }}{{ j() }}")
T("{{ dict(a=1, b=2) }}{{ dict([('x', 1)]) }}{{ dict({'a': 1}, b=2) }}")
T("{{ range(3)|list }}{{ range(1, 4)|list }}{{ range(5, 0, -2)|list }}{{ range(0)|list }}")
T("{{ range(1, 2, 0) }}")
T("{{ range('a') }}")
T("{{ range(200000) }}")
T("{{ raise_exception('Nothing works: ' ~ 1) }}")
T("{% if x %}{{ raise_exception(\"It's bad\") }}{% endif %}", x=1)
T("{{ strftime_now('%Y-%m-%d') }}{{ strftime_now('%d %b %Y') }}")
T("{{ namespace }}") if False else None
T("{{ (1, 2)|list }}{{ [1, 2]|string }}{{ ('a', 'b')|join }}")
T("{% set m = [1,2,3]|map('string') %}{{ m|join(',') }}|{{ m|join(',') }}")
T("{% set m = [1,2,3]|select %}{{ m|first }}{{ m|list }}{{ m|list }}")
T("{% for x in [1,2,3]|reverse %}{{ x }}{{ loop.last }}{% endfor %}")
T("{{ [1,2,3]|map('string')|length }}")
T("{{ ([1,2,3]|map('string'))[0] }}!")
T("{{ f(*[1, 2], **{'k': 3}) }}{% macro f() %}{% endmacro %}")
T("{% macro f(a, b, k=0) %}{{ a }}{{ b }}{{ k }}{% endmacro %}{{ f(*[1, 2], **{'k': 3}) }}{{ f(1, *[2]) }}{{ f(**{'b': 2, 'a': 1}) }}")
T("{{ true and false or true }}{{ not true == false }}{{ 1 if 1 > 2 else 3 }}")
T("{{ {'a': {'b': [10, 20]}}.a.b[1] }}{{ [[1, 2], [3, 4]][1][0] }}{{ 'abc'[1] }}")
T("{{ a.b.c.d }}", a={"b": {"c": {"d": "deep"}}})
T("{{ a if a is defined else 'none' }}{{ a|default('x')|upper }}{{ (a or 'y') ~ 'z' }}")
T("{{ x.y if x is defined and x.y is defined else 'no' }}", x={"y": 1})
T("{% set msgs = messages2[1:] %}{% for m in msgs %}{{ m.r }}{% if loop.nextitem is defined and loop.nextitem.r == 'b' %}+{% endif %}{% endfor %}", messages2=[{"r": "s"}, {"r": "a"}, {"r": "b"}])
T("{% for m in l[::-1] %}{% set index = (l|length - 1) - loop.index0 %}{{ index }}{{ l[index] }} {% endfor %}", l=["a", "b", "c"])
T("{{ '</think>' in t }}{{ t.split('</think>')[-1].lstrip('\\n') }}|{{ t.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}", t="<think>\nhm\n</think>\n\nanswer")
T("{% set ns = namespace(out='') %}{% for c in s %}{% set ns.out = c ~ ns.out %}{% endfor %}{{ ns.out }}", s="añb😀")
T("{% set ns = namespace(l=[]) %}{% for c in 'abc' %}{% set ns.l = ns.l + [c] %}{% endfor %}{{ ns.l }}")
T("{{ loop }}")
T("{{ x }}{{ y }}", x="<b>", y="a\r\nb")
T("{{ messages3[0]['content'] | trim + ' ' -}} x", messages3=[{"content": " a "}])
T("{{ 'a' ~ 'b' * 2 }}{{ 2 ~ 3 + 4 }}")
T("{{ [1,2][0] + [3][0] }}{{ -[5][0] }}{{ -3|abs }}{{ (-3)|abs }}")
T("{{ 'a'|upper ~ 'b'|upper }}{{ ('a' ~ 'b')|upper }}")
T("{{ 1.5|int + 1 }}{{ '3'|int * 2 }}{{ 3|string * 2 }}")
T("{{ x is none or x == '' }}{{ x is not none and x }}", x=None)
T("{% set x = {'role': 'user', 'content': 'hi'} %}{{ x['role'] }}: {{ x.content }}{{ x.get('name', 'n/a') }}")
T("{% if messages4 and messages4[0].role == 'system' %}S{% else %}N{% endif %}", messages4=[])
T("{{ 'x'.join(['a']) }}{{ 'é' * 3 }}{{ '日本'[0] }}{{ '日本'|length }}{{ '日本語'[1:] }}{{ '日本語'[-2:-1] }}")

# ---- white space
for middle in ("{% if true %}", "{%- if true %}", "{%- if true -%}", "{%+ if true %}", "{% if true +%}"):
    T("a\n  " + middle + "\n  b\n  {% endif %}\nc\n")
T("  {{ 1 }}  \n  {{- 2 -}}  \n 3")
T("a\n\n  {#- c -#}\n\n b\n  {# d #}\ne {# f #} g\n  {#+ h #}\ni\n")
T("{% set x = 1 %}\n\n{% set y = 2 %}\n{{ x }}\n\n")
T("x {% if true %} y {% endif %} z")
T("\t{% if true %}\tq\t{% endif %}\t\n{{ 'end' }}\n")
T("{{ 'a' }}\n{% if true %}\n{{ 'b' }}\n{% endif %}\n")
T("line\r\n{% if true %}\r\nx\r\n{% endif %}\r\ny\r")
T("{%- for x in [1,2] -%}\n  {{ x }}\n{%- endfor -%}\n")
T("{% for x in [1,2] %}\n  {{ x }}\n{% endfor %}\n")
T("a\u00a0\n \u3000{%- if true %} b{% endif %}")
T("  {% raw %}  x  {% endraw %}  \n  y")
T("{%if true%}a{%endif%}{{1}}{{-1}}{{ -1}}")
T("{{ {'a': {'b': 1}}['a']['b'] }}{{ {'x': '}}'}.x }}")
T("{{ \"a\nb\" }}{{ 'c\\\nd' }}")
T("{ { x } }{ % if % }{ # y # }")
T("")
T("\n")
T("\n\nx\n\n")

# ---- syntax errors
for bad in ("{{ }}", "{{ 1 + }}", "{% if %}{% endif %}", "{% if 1 %}", "{% endif %}", "{% for x in %}{% endfor %}", "{% nosuch %}", "{{ 'abc }}", "{{ (1 }}", "{{ 1) }}", "{{ [1, }}",
            "{# never closed", "{% raw %}x", "{{ a b }}", "{% set 1 = 2 %}", "{% set x %}", "{{ 1 | }}", "{{ x. }}", "{% macro %}{% endmacro %}", "{% macro f(a=1, b) %}{% endmacro %}", "{{ f(a=1, 2) }}",
            "{% for x in [1] %}{% endif %}", "{{ $ }}", "{% break %}", "{{ a ? b : c }}", "{{ 1 is }}", "{{ x[ }}", "{% set true = 1 %}", "{{ '\\x4' }}", "{% else %}", "{{ {1} }}", "{{ not }}", "{% if 1 %}a{% else %}b{% elif 2 %}{% endif %}"):
    T(bad)
