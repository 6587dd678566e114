from streamjax.cli import main

raise SystemExit(main())
