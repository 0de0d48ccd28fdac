"""Writes the lowest versions that `settings.ini` allows as constraints for pip:

    python tools/lowest_versions.py > lowest.txt
    python -m pip install -c lowest.txt -e ."""
import re,sys
from configparser import ConfigParser
from pathlib import Path

def lowest_versions():
    "A constraint for each requirement that has a lower bound: name==1.2.3, or name==1.2.* where the bound is 1.2"
    config = ConfigParser(delimiters=['='])
    config.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    bounds = (re.match(r'([\w.-]+)>=([\w.]+)', line) for line in config['DEFAULT']['requirements'].split())
    return [f"{bound[1]}=={bound[2]}{'.*'*(bound[2].count('.')<2)}" for bound in bounds if bound]

if __name__=='__main__': sys.stdout.write('\n'.join(lowest_versions())+'\n')
