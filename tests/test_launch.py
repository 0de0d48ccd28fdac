"Help in a moment, and Ctrl-C while the commands import their modules."
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import fastai_mix
import pytest
from fastcore.docments import docments
from fastai_mix import cli, launch

root = Path(__file__).parent.parent
script = ['-c', 'import sys; from fastai_mix.launch import main; sys.exit(main())']
module = ['-m', 'fastai_mix.cli']

def hear_interrupts():
    "What is started by tests in the background would ignore them too"
    signal.signal(signal.SIGINT, signal.SIG_DFL)

@pytest.fixture
def start(tmp_path):
    "Starts the command with `torch` as the text of PyTorch"
    def run(how, torch, *args, preexec_fn=hear_interrupts):
        (tmp_path/'torch.py').write_text(f'import os,signal,sys\n{torch}\n')
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (tmp_path, root))))
        command = [sys.executable, *how, *args]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, preexec_fn=preexec_fn)
    return run

interrupt = 'os.kill(os.getpid(), signal.SIGINT)'

@pytest.mark.parametrize('how', [script, module], ids=['script','module'])
@pytest.mark.parametrize('torch', [interrupt, f'try: {interrupt}\nexcept BaseException: pass'], ids=['plain','caught'])
def test_an_interrupt_is_one_line(how, torch, start):
    res = start(how, torch)
    assert res.returncode==130 and res.stdout==''
    assert res.stderr=='fastai-mix: stopped; nothing has been trained\n'

def test_an_interrupt_that_is_ignored_stays_so(start):
    def ignore(): signal.signal(signal.SIGINT, signal.SIG_IGN)
    res = start(script, f'{interrupt}\nsys.exit(5)', preexec_fn=ignore)
    assert res.returncode==5 and res.stderr==''

def test_the_script_is_the_command(tmp_path):
    assert 'fastai-mix=fastai_mix.launch:main' in (root/'setup.py').read_text()
    file = tmp_path/'fastai-mix'
    file.write_text(script[1].replace('; ', '\n'))
    env = dict(os.environ, PYTHONPATH=str(root))
    res = subprocess.run([sys.executable, file, '--data', '/none/here'], env=env, capture_output=True, text=True)
    assert res.returncode==2 and res.stderr.startswith('fastai-mix: no such file or folder: /none/here')
    assert res.stderr.count('\n')==1 # no warning of PyTorch before it

def test_called_from_python(monkeypatch):
    monkeypatch.setattr(cli, 'main', dict)
    assert launch.main(data='d', size=3)==dict(data='d', size=3)

no_torch = 'raise ImportError("torch is imported")'
predict = ['-c', 'from fastai_mix.launch import predict; predict()']

@pytest.mark.parametrize('how', [script, module, predict], ids=['script','module','predict'])
@pytest.mark.parametrize('option,code', [('--help',0), ('--version',0), ('--no-such-option',2)])
def test_no_imports_before_the_options_are_read(how, option, code, start):
    res = start(how, no_torch, option)
    assert res.returncode==code and 'torch is imported' not in res.stderr
    if option=='--version': assert res.stdout.split()[1]==fastai_mix.__version__
    if option=='--help': assert res.stdout.count('\n  fastai-mix')>=3 and 'examples:' in res.stdout

@pytest.mark.parametrize('name', ['cli','predict'])
def test_help_has_every_option_in_a_group_with_its_text(name):
    f = import_module(f'fastai_mix.{name}').main
    parser = launch.command_parser(name, 'x')
    known = {o.dest: o for o in parser._actions if o.dest not in ('help','version')}
    params = docments(f, full=True, returns=False)
    assert {*known}=={*params}
    for k,o in known.items():
        assert o.help.replace('%%', '%').startswith(params[k].docment)
        if o.option_strings and o.const is None: assert o.default==params[k].default
    grouped = {o for names in launch.groups.values() for o in names.split()}
    assert not [k for k,o in known.items() if o.option_strings and k not in grouped]
    assert 'other' not in [o.title for o in parser._action_groups]

def test_the_handler_is_given_back():
    code = '\n'.join(['import signal', 'from fastai_mix.launch import interrupt_in_a_line',
        'with interrupt_in_a_line(""): pass', 'assert signal.getsignal(signal.SIGINT) is signal.default_int_handler'])
    assert not subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root)),
        preexec_fn=hear_interrupts).returncode
