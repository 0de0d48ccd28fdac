"The scripts for SLURM of the page on clusters, run by a SLURM of their own on this machine."
import os,re,shutil,signal,socket,subprocess,sys,time
from pathlib import Path
from textwrap import indent

import pytest
from fastcore.nbio import read_nb
from safetensors.torch import load_file

from fastai_mix.data.leaves import leaf_data

top = Path(__file__).parent.parent
tools = 'slurmctld','slurmd','sbatch','scancel','scontrol','sinfo','munged'
missing = [o for o in tools if not shutil.which(o)]
if missing: pytest.skip(f"no {missing[0]}: Debian has it in slurm-wlm or munge", allow_module_level=True)

cells = read_nb(top/'nbs'/'howto'/'distributed.ipynb').cells

def shown(text):
    "The one block of the page that holds `text`"
    blocks = [b for c in cells if c.cell_type=='markdown'
        for b in re.findall(r'^```\w+\n(.*?)^```', c.source, re.M|re.S)]
    block, = [b for b in blocks if text in b]
    return block

def cv_script(last=None):
    "The page's script, with a call of `fit` of its own if `last` is given"
    source, = [c.source for c in cells if c.cell_type=='code' and c.source.startswith('cv_script')]
    names = {}
    exec(source, names)
    call, = re.findall(r'^    CrossVal\(.*\)\.fit\(fit\)\n', names['cv_script'], re.M)
    return names['cv_script'].replace(call, indent(last, ' '*4) if last else call)

config = '''
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={path}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
MinJobAge=3600
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.pid
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
'''

def free_ports(n):
    socks = [socket.create_server(('127.0.0.1', 0)) for _ in range(n)]
    res = [s.getsockname()[1] for s in socks]
    for s in socks: s.close()
    return res

def until(is_true, seconds=400):
    end = time.monotonic()+seconds
    while not is_true():
        assert time.monotonic()<end, f'not within {seconds} seconds'
        time.sleep(.1)

# ends all that was started for a SLURM when the test process closes the pipe, or is killed
guard = '''
cat > /dev/null
started() { grep -lzxsF "SLURM_CONF=$0" /proc/[0-9]*/environ | cut -d/ -f3; }
for sig in TERM KILL; do
    kill -$sig $(started)
    for i in $(seq 50); do [ "$(started)" ] || exit 0; sleep .1; done
done
exit 1
'''

class Cluster:
    "A SLURM of one node with two slots and two files for GPUs; all its files are in `path`"
    def __init__(self, path):
        self.path,self.conf,self.daemons = path,path/'slurm.conf',[]
        inherited = {k:v for k,v in os.environ.items() if not k.startswith(('SLURM','SBATCH','SUBMITIT'))}
        modules = filter(None, [str(path), str(top), os.environ.get('PYTHONPATH')])
        self.plain_env = dict(inherited, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', PYTHONPATH=':'.join(modules),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        self.env = dict(self.plain_env, SLURM_CONF=str(self.conf))

    def __call__(self, *command, cwd=None):
        return subprocess.run(command, cwd=cwd, env=self.env, check=True, stdout=subprocess.PIPE, text=True,
            timeout=400).stdout

    def write(self):
        path = self.path
        for o in ('state','spool'): (path/o).mkdir()
        for o in ('gpu0','gpu1'): (path/o).touch()
        (path/'munge.key').write_bytes(os.urandom(64))
        (path/'munge.key').chmod(0o600)
        self.conf.write_text(config.format(path=path, host=socket.gethostname().split('.')[0], ports=free_ports(2),
            user=os.getuid()))
        (path/'gres.conf').write_text(f'Name=gpu File={path}/gpu[0-1]\n')
        # the machine's control groups stay as they are: newer versions need none, older ones look in an empty folder
        release = tuple(map(int, re.findall(r'\d+', self('slurmctld', '-V'))[:2]))
        groups = 'CgroupPlugin=disabled' if release>=(24,
            5) else f'CgroupPlugin=cgroup/v1\nCgroupMountpoint={path}/cgroup'
        (path/'cgroup.conf').write_text(f'{groups}\n')

    def _daemon(self, *command):
        with open(self.path/f'{command[0]}.log', 'w') as f:
            self.daemons.append(subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                start_new_session=True))

    def _idle(self):
        return subprocess.run(['sinfo','-h','-o','%T'], env=self.env, capture_output=True,
            text=True).stdout.split()[:1]==['idle']

    def start(self):
        self.guard = subprocess.Popen(['bash','-c',guard,self.conf], env=self.plain_env, stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True)
        files = [f'--{o}-file={self.path}/munge.{o}' for o in ('key','pid','log','seed')]
        self._daemon('munged', '--foreground', '--force', f'--socket={self.path}/munge.socket', *files)
        until((self.path/'munge.socket').exists, 30)
        self._daemon('slurmctld', '-D')
        self._daemon('slurmd', '-D')
        try: until(self._idle, 60)
        except AssertionError:
            raise RuntimeError('\n'.join(f'{o}: {o.read_text()[-800:]}' for o in self.path.glob('*.log'))) from None

    def stop(self):
        self.guard.stdin.close()
        assert self.guard.wait(30)==0, 'processes are left'
        for o in self.daemons: o.wait()

    def job(self, number):
        "What SLURM knows of a job, by name"
        return dict(re.findall(r'(\w+)=(\S*)', self('scontrol', 'show', 'job', str(number))))

hold = '''
import os,time
from pathlib import Path

sync = os.fsync
def counted(fd):
    "Note each checkpoint that has its name, and stop there as long as the test says so"
    sync(fd)
    folder = Path(os.readlink(f'/proc/self/fd/{fd}'))
    if folder.name!='checkpoints': return
    here,fold = folder.parents[2],folder.parent.name[-1]
    with open(here/'epochs.txt', 'a') as f: f.write(f'{fold} {os.environ["SLURM_JOB_ID"]} {os.getpid()}\\n')
    while (here/f'hold_{fold}').exists(): time.sleep(.05)
if 'SLURM_JOB_ID' in os.environ: os.fsync = counted
os.environ['CUDA_VISIBLE_DEVICES'] = '' # the GPUs of this SLURM are files
'''

@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    res = Cluster(tmp_path_factory.mktemp('slurm'))
    (res.path/'sitecustomize.py').write_text(hold)
    leaf_data(res.path/'leaves', n=80, size=64)
    res.write()
    try:
        res.start()
        yield res
    finally: res.stop()

class Folder:
    "Where a run is started, with the page's data"
    def __init__(self, cluster, name, **files):
        self.path = cluster.path/name
        self.path.mkdir()
        (self.path/'leaves').symlink_to(cluster.path/'leaves')
        for k,v in files.items(): (self.path/k.replace('_', '.')).write_text(v)
    def hold(self, *folds):
        for k in folds: (self.path/f'hold_{k}').touch()
    def release(self, *folds):
        for k in folds: (self.path/f'hold_{k}').unlink()
    def epochs(self, fold):
        "Job and process of each checkpoint of a fold"
        try: rows = (self.path/'epochs.txt').read_text().splitlines()
        except FileNotFoundError: return []
        return [(job,int(pid)) for k,job,pid in map(str.split, rows) if k==str(fold)]
    def result(self, fold):
        there = self.path/'run'/f'fold_{fold}'
        return (there/'oof.csv').read_text(),{k: v.numpy().tobytes()
            for k,v in load_file(there/'model.safetensors').items()}

@pytest.fixture(scope='module')
def alone(cluster):
    "The folds as one process trains them that nobody stops"
    res = Folder(cluster, 'alone', cv_py=cv_script())
    cluster(sys.executable, 'cv.py', cwd=res.path)
    return res

def test_stopped_jobs_of_an_array_go_on(cluster, alone):
    here = Folder(cluster, 'array', cv_py=cv_script(shown('folds=[int(')), job_sh=shown('#SBATCH'))
    here.hold(0, 1, 2, 3)
    array = cluster('sbatch', '--parsable', 'job.sh', cwd=here.path).strip()
    def job(k): return cluster.job(f'{array}_{k}')
    def state(k): return job(k)['JobState']

    until(lambda: here.epochs(0) and here.epochs(1))
    cluster('scancel', f'{array}_0')
    os.kill(here.epochs(1)[0][1], signal.SIGKILL)
    until(lambda: not {state(0),state(1)}&{'RUNNING','COMPLETING'})
    assert (state(0),state(1),job(1)['ExitCode'])==('CANCELLED','FAILED','137:0')

    until(lambda: here.epochs(2) and here.epochs(3))
    last, = [k for k in (2,3) if job(k)['JobId']==array] # has the number of the whole array
    other = 5-last
    cluster('scancel', '--batch', '--signal=USR1', f'{array}_{last}') # as SLURM does before the time is up
    until(lambda: state(last)=='PENDING')
    assert [state(k) for k in (0,1,other)]==['CANCELLED','FAILED','RUNNING']
    assert [job(k)['Restarts'] for k in (0,1,other,last)]==['0','0','0','1']
    cluster('sbatch', '--partition=urgent', '--ntasks=2', '--output=/dev/null', '--wrap=true')
    until(lambda: state(other)=='PENDING')

    assert [len(here.epochs(k)) for k in range(4)]==[1]*4
    here.release(0, 1, 2, 3)
    for k in (0,1): cluster('scontrol', 'requeue', f'{array}_{k}')
    until(lambda: all(state(k)=='COMPLETED' for k in range(4)))
    for k in range(4):
        assert len(here.epochs(k))==3 # the one before the stop was not trained again
        assert len({pid for _,pid in here.epochs(k)})==2
        assert (here.path/f'slurm-{array}_{k}.out').read_text().count(f'fold {k}\n')==2
        assert here.result(k)==alone.result(k)

def test_fit_by_submitit_outlives_a_preemption(cluster, alone):
    pytest.importorskip('submitit')
    here = Folder(cluster, 'submitit', cv_py=cv_script(shown('import submitit')))
    shutil.copytree(alone.path/'run', here.path/'run')
    for k in (0,1): shutil.rmtree(here.path/'run'/f'fold_{k}') # the others are done, and need no job
    here.hold(0)
    err = here.path/'err.txt'
    with open(err, 'w') as f:
        fit = subprocess.Popen([sys.executable, 'cv.py'], cwd=here.path, env=cluster.env, stdout=subprocess.DEVNULL,
            stderr=f)
    try:
        until(lambda: here.epochs(0) or fit.poll() is not None)
        assert here.epochs(0), err.read_text()
        number = here.epochs(0)[0][0]
        cluster('scancel', '--signal=USR2', number)
        until(lambda: cluster.job(number)['Restarts']=='1')
        here.release(0)
        assert fit.wait(400)==0, err.read_text()
    finally:
        fit.kill()
        fit.wait()
    assert [len(here.epochs(k)) for k in range(4)]==[3,3,0,0] and len({pid for _,pid in here.epochs(0)})==2
    for k in range(4): assert here.result(k)==alone.result(k)
