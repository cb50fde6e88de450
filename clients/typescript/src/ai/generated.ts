// Written by docs/generate_ts.py from the code of the server. Run `make docs` to update it.

/** A tool for models. */
export type ToolName = "run_code" | "wait" | "read_output" | "interrupt" | "undo" | "write_file" | "read_file" | "keep" | "fork" | "variables" | "sessions" | "export_notebook";

/** A tool: its words for models, the JSON schema of its arguments, and hints about its effects. */
export interface ToolDefinition {
  name: ToolName;
  title: string;
  description: string;
  inputSchema: Record<string, unknown>;
  reads: boolean;
  destroys: boolean;
  repeats: boolean;
}

/** The tools, in the order in which models see them. */
export const TOOLS: readonly ToolDefinition[] = [
  {
    "name": "run_code",
    "title": "Run Python",
    "description": "Run Python in a session that keeps variables and files. Answers with output, last value, error and plots, and [n], the cell's number. After 50 seconds it answers while the code runs on: call wait.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "description": "A name. Default: yours.",
          "type": "string"
        },
        "code": {
          "description": "A cell: %magics, !shell and top-level await work.",
          "type": "string"
        },
        "seconds": {
          "description": "Interrupt the code after so long.",
          "type": "number"
        },
        "budget": {
          "description": "Tokens of the answer, about.",
          "type": "integer"
        }
      },
      "required": [
        "code"
      ],
      "additionalProperties": false
    },
    "reads": false,
    "destroys": true,
    "repeats": false
  },
  {
    "name": "wait",
    "title": "Wait for a cell",
    "description": "Wait for a running cell. Answers with what is new.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "cell": {
          "type": "integer",
          "description": "A number. Default: the last."
        },
        "seconds": {
          "description": "At most. Default: 50.",
          "type": "number"
        }
      },
      "additionalProperties": false
    },
    "reads": true,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "read_output",
    "title": "Read a cell's output",
    "description": "Read any lines or picture of a cell's whole output, where an answer has a gap.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "cell": {
          "type": "integer",
          "description": "A number. Default: the last."
        },
        "from_line": {
          "description": "First line.",
          "type": "integer"
        },
        "lines": {
          "type": "integer"
        },
        "find": {
          "description": "Only lines that match this regex.",
          "type": "string"
        },
        "picture": {
          "description": "Show this picture.",
          "type": "integer"
        }
      },
      "additionalProperties": false
    },
    "reads": true,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "interrupt",
    "title": "Interrupt",
    "description": "Stop the running cell. Variables stay.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": false,
    "destroys": false,
    "repeats": true
  },
  {
    "name": "undo",
    "title": "Undo",
    "description": "Set the variables back to before a cell. Files stay as they are.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "cell": {
          "type": "integer",
          "description": "Undo this cell and all after it. Default: the last."
        },
        "to": {
          "description": "A name of keep.",
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": false,
    "destroys": true,
    "repeats": false
  },
  {
    "name": "write_file",
    "title": "Write a file",
    "description": "Write a file, as text or base64.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "path": {
          "type": "string"
        },
        "text": {
          "type": "string"
        },
        "base64": {
          "type": "string"
        }
      },
      "required": [
        "path"
      ],
      "additionalProperties": false
    },
    "reads": false,
    "destroys": true,
    "repeats": true
  },
  {
    "name": "read_file",
    "title": "Read a file",
    "description": "Read a text or picture, or list a directory.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "path": {
          "type": "string"
        },
        "from_line": {
          "description": "First line.",
          "type": "integer"
        },
        "lines": {
          "type": "integer"
        },
        "find": {
          "description": "Only lines that match this regex.",
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": true,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "keep",
    "title": "Keep a state",
    "description": "Keep the present variables under a name, for undo and fork.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "name": {
          "type": "string"
        }
      },
      "required": [
        "name"
      ],
      "additionalProperties": false
    },
    "reads": false,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "fork",
    "title": "Fork",
    "description": "Copy the session with its variables and files, to try several ways. Answers with the copies' names.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "count": {
          "type": "integer"
        },
        "from_kept": {
          "description": "A name of keep. Default: now.",
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": false,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "variables",
    "title": "Variables",
    "description": "List the variables, with types and sizes.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": true,
    "destroys": false,
    "repeats": false
  },
  {
    "name": "sessions",
    "title": "Sessions",
    "description": "List the sessions, or restart or close one.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "restart": {
          "description": "Restart this one: no variables, same files.",
          "type": "string"
        },
        "close": {
          "description": "End this one.",
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": false,
    "destroys": true,
    "repeats": false
  },
  {
    "name": "export_notebook",
    "title": "Export the notebook",
    "description": "Make a Jupyter notebook, page or script of the session for the user.",
    "inputSchema": {
      "type": "object",
      "properties": {
        "session": {
          "type": "string"
        },
        "format": {
          "type": "string",
          "enum": [
            "html",
            "ipynb",
            "py"
          ]
        },
        "path": {
          "description": "Also write it there.",
          "type": "string"
        }
      },
      "additionalProperties": false
    },
    "reads": false,
    "destroys": false,
    "repeats": true
  }
];
