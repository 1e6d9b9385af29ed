-- What a policy finds in its globals. Made by bridge/lint.py of docs/lua-api.md.
stds.lunatik = {
  read_globals = {
      "_G", "_VERSION", "assert", "collectgarbage", "error", "getmetatable", "ipairs",
      "load", "next", "pairs", "pcall", "print", "rawequal", "rawget", "rawlen",
      "rawset", "require", "select", "setmetatable", "tonumber", "tostring", "type",
      "warn", "xpcall",
    coroutine = { fields = {
      close = {}, create = {}, isyieldable = {}, resume = {}, running = {}, status = {},
      wrap = {}, yield = {},
    } },
    lunatik = { fields = {
      _ENV = { read_only = false, other_fields = true }, runtime = {},
    } },
    math = { fields = {
      abs = {}, max = {}, maxinteger = {}, min = {}, mininteger = {}, random = {},
      tointeger = {}, type = {}, ult = {},
    } },
    string = { fields = {
      byte = {}, char = {}, find = {}, format = {}, gmatch = {}, gsub = {}, len = {},
      lower = {}, match = {}, pack = {}, packsize = {}, rep = {}, reverse = {},
      sub = {}, unpack = {}, upper = {},
    } },
    table = { fields = {
      concat = {}, insert = {}, move = {}, pack = {}, remove = {}, sort = {},
      unpack = {},
    } },
    utf8 = { fields = {
      char = {}, charpattern = {}, codepoint = {}, codes = {}, len = {}, offset = {},
    } },
  },
  globals = {
      "handover", "takeover",
  },
}
std = "lunatik"
