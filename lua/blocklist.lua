-- Lists of domain names to block, each with the names below it.
--
-- blocklist.new()          an empty list
-- list:change(verb, name)  "block" puts a name on the list, "allow" takes it off; it may
--                          be there or gone already. The name is one that a user wrote.
--                          Raises an error for other words, made to be seen by whoever
--                          resumes the policy.
-- list:has(name)           whether the name or one above it is on the list; the name is
--                          in lower case without the final dot, as dns and tls give it
-- #list                    number of names on the list
local dns = require "dns"

local blocklist = {}
local methods = {}
local lists = { __index = methods, __name = "blocklist" }

function blocklist.new()
  return setmetatable({ names = {}, count = 0 }, lists)
end

function lists:__len() return self.count end

function methods:change(verb, name)
  local block = verb == "block"
  if not block and verb ~= "allow" or type(name) ~= "string" then
    error('resume takes "block" or "allow", and a name', 2)
  end
  name = dns.normal(name)
  if block ~= (self.names[name] or false) then
    self.names[name] = block or nil
    self.count = self.count + (block and 1 or -1)
  end
end

function methods:has(name)
  return dns.listed(name, self.names) ~= nil
end

return blocklist
