"Ctrl-C while the command imports its modules."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fastai_mix import cli, launch

root = Path(__file__).parent.parent
script = ['-c', 'import sys; from fastai_mix.launch import main; sys.exit(main())']
module = ['-m', 'fastai_mix.cli']

@pytest.fixture
def start(tmp_path):
    "Starts the command with `torch` as the text of PyTorch"
    def run(how, torch, *args, **kwargs):
        (tmp_path/'torch.py').write_text(f'import os,signal,sys\n{torch}\n')
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (tmp_path, root))))
        command = [sys.executable, *how, *args]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, **kwargs)
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
    assert launch.main is cli.main and 'fastai-mix=fastai_mix.launch:main' in (root/'setup.py').read_text()
    file = tmp_path/'fastai-mix'
    file.write_text(script[1].replace('; ', '\n'))
    env = dict(os.environ, PYTHONPATH=str(root))
    res = subprocess.run([sys.executable, file, '--data', '/none/here'], env=env, capture_output=True, text=True)
    assert res.returncode==2 and 'no such file or folder: /none/here' in res.stderr.splitlines()[-1]

def test_the_handler_is_given_back():
    code = 'import signal\nimport fastai_mix.launch\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler'
    assert not subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(root))).returncode
