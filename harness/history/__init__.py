"""The history: every run in one database, and what it says of a case over time.

| module | what |
|---|---|
| `keys` | what must be equal for two cases to be compared, and what may have changed |
| `points` | one case of one run as numbers: what the tables hold |
| `location` | which database: an option, a variable, a default |
| `schema`, `migrations/` | the tables, and how they came to be |
| `database` | a connection to them, and what goes wrong with one |
| `store` | runs in and out, labels, baselines, what is kept for how long |
| `keeping` | what a finished comparison does with its run; runs that wait for a server |
| `changes` | a case then and now: statistics |
| `steps`, `trends` | figures over many runs: where they moved, and what changed then |
| `spread` | figures that have one value a run, and how their history varies |
| `sides`, `diff` | two sides held against each other |
| `gate`, `limits` | what of that is a regression |
| `against`, `checking`, `github` | the sides of `harness check`, the command, and what a workflow is told |
| `again` | suspicious cases measured again |
| `site`, `sitefolder`, `publishing` | the pages of a published history, the folder they lie in, writing what changed |
| `queries`, `deriving` | what is read of the tables; points from a run |
| `cli`, `cli_check`, `publish_command`, `parameters` | what the user types |
| `managing`, `showing` | the commands behind it |

SQLAlchemy is imported by `schema`, `database`, `store` and `migrations` only, and those when a command needs them.
"""
