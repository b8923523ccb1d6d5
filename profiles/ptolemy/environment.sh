# Once in every shell on Ptolemy, from the project's folder:  source profiles/ptolemy/environment.sh

# the system's Python is 3.9, too old. Jobs inherit what is loaded here
module load python/3.12.5

# home has 5 GB: what pip and others keep goes to scratch
export XDG_CACHE_HOME="/scratch/ptolemy/users/$USER/.cache"

if [ -d .venv ]; then
    . .venv/bin/activate
else
    echo "no environment yet; make it with: make venv"
fi
